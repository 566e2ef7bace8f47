"""ResNet-20 (He et al., 2016) on 32 x 32 images made up here: a coloured pattern for each class, under noise."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--iterations", type=int, default=20)
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--amp", action="store_true", help="in half precision, with a scaler")
parser.add_argument("--save-every", type=int, default=0, help="naive checkpoints; 0: none")
options = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
half = torch.float16 if device == "cuda" else torch.bfloat16


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.skip(x))


def stage(inputs, outputs, stride):
    return [Block(inputs, outputs, stride), Block(outputs, outputs, 1), Block(outputs, outputs, 1)]


def images(count):
    patterns = torch.randn(10, 3, 32, 32)
    labels = torch.randint(10, (count,))
    return TensorDataset(patterns[labels] + torch.randn(count, 3, 32, 32), labels)


torch.manual_seed(0)
loader = DataLoader(images(options.iterations * options.batch), batch_size=options.batch, shuffle=True)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
    *stage(16, 16, 1), *stage(16, 32, 2), *stage(32, 64, 2),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
).to(device)  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
scaler = torch.amp.GradScaler(device, enabled=options.amp)
for _ in range(options.epochs):
    for step, (x, y) in enumerate(loader, start=1):
        x, y = x.to(device), y.to(device)
        optimizer.zero_grad()
        with torch.autocast(device, half, enabled=options.amp):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if options.save_every and step % options.save_every == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"checkpoint-{step}.pt")
