"""A library's own loop and own optimizer, leaving each epoch early; the script has a callback and nothing else."""

import torch
from handloop import Fitter, Momentum
from labapex.session import Session
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Report:
    def __init__(self, run):
        self.run = run
        self.mean = 0.0

    def after_update(self, loss):
        self.mean = 0.9 * self.mean + 0.1 * loss.item()
        print(loss.item(), self.mean)
        self.run.step(loss)


def main():
    torch.manual_seed(6)
    x = torch.randn(48, 4)
    loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8, shuffle=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    run = Session()
    report = Report(run)
    fitter = Fitter(model, Momentum(model.parameters(), 0.1), nn.CrossEntropyLoss())
    run.prepare(model, fitter, fitter.optimizer, report)
    fitter.fit(run.batches(loader), epochs=3, callbacks=[report], limit=5)


main()
