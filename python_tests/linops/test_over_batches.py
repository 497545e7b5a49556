"""Operators of data in batches: equal to those of the whole data in memory, to 1e-12."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import catapult_ext as cx
from catapult_ext.linops.streamed.batches import crc, device_sum
from catapult_ext.testing.pretended import moved, pretended_cuda, why_unavailable
from catapult_ext.testing.tolerances import assert_close

SIZES = [7, 1, 12, 3]
TOTAL = sum(SIZES)


def net(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, outputs)
    ).double()


def inputs(n=TOTAL):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64)


def labels(kind, n=TOTAL):
    generator = torch.Generator().manual_seed(2)
    if kind == "labels":
        y = torch.randint(3, (n,), generator=generator)
        y[4] = y[9] = -100  # ignored: batches weigh unequally
        return y
    return torch.rand(n, 3, generator=generator, dtype=torch.float64)


LOSSES = {
    "half_mse": ("half_mse", "values"),
    "half_mse_mean": ("half_mse_mean", "values"),
    "MSE sum": (nn.MSELoss(reduction="sum"), "values"),
    "cross-entropy": (nn.CrossEntropyLoss(label_smoothing=0.1), "labels"),
    "weighted cross-entropy": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double()),
        "labels",
    ),
    "cross-entropy sum": (nn.CrossEntropyLoss(reduction="sum"), "labels"),
    "BCE": (nn.BCEWithLogitsLoss(), "values"),
}


close = partial(assert_close, tolerance=1e-12)


def pairs(x, y):
    return list(zip(x.split(SIZES), y.split(SIZES), strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_ggn_and_hessian(name):
    loss, kind = LOSSES[name]
    model, x, y = net(), inputs(), labels(kind)
    v = torch.randn(sum(p.numel() for p in model.parameters()), 3, dtype=torch.float64)
    for streamed, whole in ((cx.StreamedGGN, cx.GGN), (cx.StreamedHessian, cx.Hessian)):
        operator = streamed(model, loss, pairs(x, y))
        passes = operator.passes
        close(operator @ v, whole(model, loss, (x, y)) @ v)
        assert operator.passes == passes + 1
        close(streamed(model, loss, (x, y)) @ v, whole(model, loss, (x, y)) @ v)


def test_ntk_reads_twice():
    model, x = net(), inputs()
    operator = cx.StreamedNTK(model, list(x.split(SIZES)))
    exact = cx.NTK(model, x)
    assert operator.shape == exact.shape
    v = torch.randn(operator.shape[0], 2, dtype=torch.float64)
    passes = operator.passes
    close(operator @ v, exact @ v)
    assert operator.passes == passes + 2


def test_callable_loss_says_what_it_does():
    model, x, y = net(), inputs(), labels("values")

    def quartic(f, t):
        return (f - t).pow(4).sum(1).mean()

    with pytest.raises(ValueError, match="whether a loss averages is known for"):
        cx.StreamedHessian(model, quartic, pairs(x, y))
    operator = cx.StreamedHessian(model, quartic, pairs(x, y), reduction="mean")
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    close(operator @ v, cx.Hessian(model, quartic, (x, y)) @ v)


def test_eigsh_with_a_loader_and_through_the_dual():
    model, x, y = net(), inputs(), labels("values")
    exact = cx.eigsh(cx.GGN(model, "half_mse", (x, y)), k=2, tol=1e-8).eigenvalues
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    for data, small in ((loader, False), ((x, y), True)):
        operator = cx.StreamedGGN(model, "half_mse", data)
        assert (operator.dual() is not None) == small
        found = cx.eigsh(operator, k=2, tol=1e-8)
        assert ((found.eigenvalues - exact).abs() <= 1e-7 * exact).all()
        assert (operator @ found.eigenvectors - found.eigenvectors * found.eigenvalues).norm() < (
            1e-3 * exact[0]
        )


def test_the_model_may_train_on():
    model, x, y = net(), inputs(), labels("values")
    operator = cx.StreamedGGN(model, "half_mse", pairs(x, y))
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    before = operator @ v
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    assert torch.equal(operator @ v, before)


def test_data_that_changes_is_noticed():
    model, x, y = net(), inputs(), labels("values")
    torch.manual_seed(0)
    shuffled = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    operator = cx.StreamedGGN(model, "half_mse", shuffled)
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"changed between two passes \(batch 0 is another one"):
        operator @ v
    some = pairs(x, y)
    operator = cx.StreamedGGN(model, "half_mse", some)
    some.pop()
    with pytest.raises(RuntimeError, match="3 batches instead of 4"):
        operator @ v
    with pytest.raises(TypeError, match="whose __iter__ starts again"):
        cx.StreamedGGN(model, "half_mse", iter(pairs(x, y)))


def test_bad_data():
    model, x, y = net(), inputs(), labels("values")
    with pytest.raises(ValueError, match="data must hold samples"):
        cx.StreamedGGN(model, "half_mse", [])
    with pytest.raises(TypeError, match=r"data must be a pair \(x, y\)"):
        cx.StreamedGGN(model, "half_mse", [x])
    empty = [(x[:0], y[:0]), *pairs(x, y)]
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    close(cx.StreamedGGN(model, "half_mse", empty) @ v, cx.GGN(model, "half_mse", (x, y)) @ v)
    with pytest.raises(RuntimeError, match="init_process_group"):
        cx.StreamedGGN(model, "half_mse", (x, y), group="world")


class Generated:
    """n samples made batch by batch, the same ones in every pass."""

    def __init__(self, n, batch=500):
        self.n, self.batch = n, batch

    def __iter__(self):
        for start in range(0, self.n, self.batch):
            generator = torch.Generator().manual_seed(start)
            x = torch.randn(self.batch, 20, generator=generator)
            yield x, x[:, :2].sin()


def peak_of_streaming(n):
    """Peak resident bytes of a process that makes one product over n samples."""
    code = (
        "import resource, torch, catapult_ext as cx, test_over_batches as t\n"
        "torch.manual_seed(0); torch.set_num_threads(1)\n"
        "net = torch.nn.Sequential("
        "torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))\n"
        f"G = cx.StreamedGGN(net, 'half_mse', t.Generated({n}))\n"
        "assert torch.isfinite(G @ torch.ones(G.shape[0])).all()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    paths = [str(Path(__file__).parent), str(Path(cx.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("n", [20_000, pytest.param(1_000_000, marks=pytest.mark.nightly)])
def test_memory_does_not_grow_with_the_samples(n):
    few, many = peak_of_streaming(1000), peak_of_streaming(n)
    assert many <= 1.05 * few, (few, many)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_the_sum_of_a_batch_on_a_gpu_shows_any_change(dtype):
    """One entry, two that change places, one at the end of the last, incomplete word."""
    torch.manual_seed(0)
    values = (torch.randn(1003) * 50).to(dtype)

    def total(t):
        return int(device_sum(t.view(torch.uint8)))

    for i in (0, 500, 1002):
        changed = values.clone()
        changed[i] += 1
        assert total(changed) != total(values)
    swapped = values.clone()
    one, other = 3, int((values != values[3]).nonzero()[-1])
    swapped[[one, other]] = values[[other, one]]
    assert total(swapped) != total(values)
    assert total(values.clone()) == total(values)


@pytest.mark.skipif(bool(why_unavailable("cpu")), reason=why_unavailable("cpu"))
def test_a_batch_on_a_gpu_is_summed_there():
    with pretended_cuda("cpu") as device:
        batch = moved(torch.arange(1000.0))
        mark = crc(batch)
        assert sum(device.waits.values()) == 1  # one number comes back
        batch[7] = -1.0
        assert crc(batch) != mark
