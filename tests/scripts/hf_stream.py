"""The Trainer of Hugging Face over a stream without a length, with its own kind of model, loss, optimizer and checkpoints."""

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments


class Stream(IterableDataset):
    def __iter__(self):
        while True:
            x = torch.randn(4)
            yield {"x": x, "labels": x.sum().unsqueeze(0)}


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, x, labels=None):
        return {"logits": self.layers(x)}


class Fit(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = nn.functional.mse_loss(outputs["logits"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss


arguments = TrainingArguments(
    output_dir="out",
    max_steps=15,
    learning_rate=1e-2,
    optim="adafactor",
    logging_steps=1,
    save_steps=10,
    disable_tqdm=True,
    report_to="none",
    use_cpu=True,
)
Fit(model=Line(), args=arguments, train_dataset=Stream()).train()
