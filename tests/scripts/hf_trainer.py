"""The Trainer of Hugging Face with a small GPT-2 made from a configuration: accumulation, workers that read ahead, evaluation."""

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed


class Sums(Dataset):
    """Sequences in which each number follows from the two before."""

    def __init__(self, n):
        self.rows = torch.randint(0, 16, (n, 12))
        for t in range(2, 12):
            self.rows[:, t] = (self.rows[:, t - 1] + self.rows[:, t - 2]) % 16

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


def main():
    set_seed(0)
    config = GPT2Config(vocab_size=16, n_positions=12, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    arguments = TrainingArguments(
        output_dir="out",
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        dataloader_num_workers=2,
        dataloader_prefetch_factor=4,
        warmup_steps=2,
        weight_decay=0.1,
        logging_steps=2,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=Sums(40), eval_dataset=Sums(8))
    trainer.train()


if __name__ == "__main__":
    main()
