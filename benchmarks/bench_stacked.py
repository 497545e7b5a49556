"""Learning rates of one dense net as one program, against one after the other in plain torch."""

import copy

import pytest
import torch
from harness import Case

from catapult_ext import data, models
from catapult_ext.experiments.stacked import StackedDense

STEPS = 20


def one_after_the_other(net, x, y, etas):
    """Losses after the steps, a torch.optim.SGD run per rate."""
    ends = []
    for eta in etas:
        own = copy.deepcopy(net)
        optimiser = torch.optim.SGD(own.parameters(), lr=eta)
        for _ in range(STEPS):
            optimiser.zero_grad()
            ((own(x) - y).square().sum() / (2 * len(x))).backward()
            optimiser.step()
        with torch.no_grad():
            ends.append((own(x) - y).square().sum() / (2 * len(x)))
    return torch.stack(ends)


def _case(measure, device, width, samples, rates, target):
    d = data.teacher(samples, in_features=784, out_features=10).to(device)
    net = models.fully_connected(784, 10, width=width, depth=3).to(device)
    x, y = d.train
    lambda0 = StackedDense([net], x[:32], y[:32]).top_eigenvalue().item()
    etas = torch.linspace(0.1, 1.0, rates).to(device) / lambda0
    cut = torch.full_like(etas, 1e30)

    def ours():
        stack = StackedDense([net] * rates, x, y)
        return stack.descend(etas, STEPS, cut, curvature=False).loss[:, -1]

    def plain():
        return one_after_the_other(net, x, y, etas.tolist())

    def check():
        torch.testing.assert_close(ours(), plain(), rtol=1e-3, atol=0)

    measure(
        Case(
            ours=ours,
            baselines={"one after the other": plain},
            check=check,
            unit=("replica-steps", rates * STEPS),
            target={"one after the other": target} if target else {},
        ),
        device=device,
    )


@pytest.mark.parametrize("width", [64, 256])
def test_cpu(measure, quick, width):
    """Eight rates, 64 samples."""
    _case(measure, "cpu", 16 if quick else width, 8 if quick else 64, 8, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("samples", [64, 512])
def test_cuda(measure, quick, samples):
    """64 rates of the net of width 2048."""
    _case(measure, "cuda", 64 if quick else 2048, samples, 64, 10.0)
