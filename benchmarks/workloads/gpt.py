"""A GPT of 10.7 million parameters (6 layers, 6 heads, width 384) on a sequence of characters made up here."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--iterations", type=int, default=20)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--amp", action="store_true", help="in half precision, with a scaler")
parser.add_argument("--head", action="store_true", help="train the last layer alone, as one who fine-tunes")
parser.add_argument("--save-every", type=int, default=0, help="naive checkpoints; 0: none")
options = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
half = torch.float16 if device == "cuda" else torch.bfloat16
LENGTH, CHARACTERS, WIDTH = 64, 96, 384


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 6, 4 * WIDTH, 0.1, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 6, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CHARACTERS, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH), persistent=False)

    def forward(self, x):
        places = torch.arange(x.shape[1], device=x.device)
        return self.head(self.blocks(self.token(x) + self.place(places), mask=self.mask, is_causal=True))


torch.manual_seed(0)
text = torch.randint(CHARACTERS, (options.iterations * options.batch, LENGTH + 1)).cumsum(1) % CHARACTERS
loader = DataLoader(TensorDataset(text[:, :-1], text[:, 1:]), batch_size=options.batch, shuffle=True)
model = GPT().to(device)
if options.head:
    model.requires_grad_(False).head.requires_grad_(True)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
scaler = torch.amp.GradScaler(device, enabled=options.amp)
for _ in range(options.epochs):
    for step, (x, y) in enumerate(loader, start=1):
        x, y = x.to(device), y.to(device)
        optimizer.zero_grad()
        with torch.autocast(device, half, enabled=options.amp):
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if options.save_every and step % options.save_every == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"checkpoint-{step}.pt")
