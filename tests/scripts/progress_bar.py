"""A progress bar round `enumerate`, in the loop's head and kept in a variable; a new loader in each epoch from a function."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm


def make_loader(data, train):
    return DataLoader(data, batch_size=8, shuffle=train)


def main():
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.RAdam(model.parameters(), lr=0.01)
    for epoch in tqdm(range(3)):
        bar = tqdm(enumerate(make_loader(data, True)), leave=False)
        for step, (x, y) in bar:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y) * (1 + 0.1 * step)
            loss.backward()
            optimizer.step()
            bar.set_description(f"{loss.item():.4f}")
        for step, (x, y) in tqdm(enumerate(make_loader(data, False)), total=5):
            print(epoch, step, model(x).mean().item())


if __name__ == "__main__":
    main()
