"""Bare tensors updated through `.data`, without a loader, in functions; the rate follows a variable."""

import torch
from labapex.session import Session

run = Session()


def update(parameters, rate):
    for p in parameters:
        p.data -= rate * p.grad
        p.grad.zero_()


def main():
    torch.manual_seed(4)
    x = torch.randn(60, 5)
    y = x @ torch.randn(5, 1) + 0.1 * torch.randn(60, 1)
    weight = torch.randn(5, 1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    weight, bias = run.prepare(weight, bias)
    rate = 0.1
    for epoch in run.epochs(3):
        for _ in run.steps(6):
            at = torch.randint(len(x), (10,))
            loss = (x[at] @ weight + bias - y[at]).square().mean()
            loss.backward()
            update([weight, bias], rate)
            print(loss.item())
            run.step(loss)
        rate *= 0.5


main()
