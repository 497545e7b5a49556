"""What keeps large models within memory: shared parameters, halves, proofs of a few at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines import autograd, transpose_proof
from catapult_ext.linops.engines.autograd import AutogradLinearization
from catapult_ext.linops.model import state

ROOT = Path(__file__).resolve().parents[2]


class Tied(nn.Module):
    """Tokens through attention to logits by the embedding itself."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.qkv, self.up, self.down = nn.Linear(6, 18), nn.Linear(6, 9), nn.Linear(9, 6)
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, x):
        h = self.words(x)
        q, k, v = self.qkv(h).split(6, -1)
        h = h + torch.softmax(q @ k.mT, -1) @ v
        h = h + self.down(torch.tanh(self.up(h)))
        return (h @ self.words.weight.T)[:, -1]


def tied():
    torch.manual_seed(0)
    return Tied().double(), torch.randint(11, (5, 4)), torch.randint(11, (5,))


@pytest.mark.parametrize("columns", [1, 3])
def test_products_in_halves_are_those_of_the_whole(monkeypatch, columns):
    model, x, y = tied()
    u = torch.randn(55, columns, dtype=torch.float64)
    whole = cx.NTK(model, x, engine="autograd")
    exact = whole.dense() @ u
    assert whole.linearization._halves == [list(range(len(whole.parameter_names)))]
    monkeypatch.setattr(autograd, "_WHOLE", 0)
    halves = cx.NTK(model, x, engine="autograd")
    first, second = halves.linearization._halves
    assert first + second == list(range(len(halves.parameter_names)))
    torch.testing.assert_close(halves @ u, exact, rtol=1e-12, atol=1e-12)
    small = cx.GGN(model, nn.CrossEntropyLoss(), (x, y), engine="autograd").dual()
    dense = cx.GGN(model, nn.CrossEntropyLoss(), (x, y)).dense()
    top = torch.linalg.eigvalsh(dense)[-1]
    found = cx.eigsh(small.operator, tol=1e-8).eigenvalues[0]
    torch.testing.assert_close(found, top, rtol=1e-7, atol=0)


class Wrong(torch.autograd.Function):
    """x to 2 x, whose backward says 3 for one parameter of several."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 3 * g


@pytest.mark.parametrize("together", [0, 1100, 1 << 30])
@pytest.mark.parametrize("name", ["words.weight", "qkv.bias", "down.bias"])
def test_a_proof_of_a_few_parameters_at_a_time_names_the_wrong_ones(monkeypatch, together, name):
    monkeypatch.setattr(transpose_proof, "_TOGETHER", together)
    model, x, _ = tied()
    line = AutogradLinearization.build(cx.NTK(model, x).linearization.snapshot)
    position = line.snapshot.names.index(name)
    program, asked = line._program, []

    def product(blocks):
        out = program(blocks, graph=True)
        asked.append(sum(b is not None for b in blocks))
        wrong = blocks[position]
        return out if wrong is None or out is None else out + 1e-3 * wrong.sum()

    def vjp(u, which):
        return line._blocks(u[:, 0], which)

    why = transpose_proof.mismatch(line.snapshot, line.rows, product, vjp, True)
    assert why == f"wrong or missing derivatives by {name}"
    right = transpose_proof.mismatch(
        line.snapshot, line.rows, lambda t: program(t, graph=True), vjp, True
    )
    assert right == ""
    assert (max(asked) == 1) is (together == 0)


def test_a_large_model_is_proven_on_two_samples(monkeypatch):
    monkeypatch.setattr(autograd, "_WHOLE", 0)
    model, x, _ = tied()
    rows, plain = [], autograd.mismatch
    monkeypatch.setattr(autograd, "mismatch", lambda s, n, *a: (rows.append(n), plain(s, n, *a))[1])
    kernel = cx.NTK(model, x, engine="autograd")
    kernel @ torch.randn(55, dtype=torch.float64)
    assert rows == [22]
    assert kernel.linearization._program is not None


def test_wrong_derivatives_of_a_large_model_are_seen(monkeypatch):
    monkeypatch.setattr(autograd, "_WHOLE", 0)
    model, x, _ = tied()

    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return Wrong.apply(self.inner(x))

    kernel = cx.NTK(Bad(), x, engine="autograd", check=False)
    kernel @ torch.randn(55, dtype=torch.float64)
    assert kernel.linearization._program is None


def test_a_recorded_pass_keeps_no_result_that_no_rule_needs():
    kept = []

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x):
            h = self.inner(x)
            for step in (torch.neg, lambda a: a.view(-1, 2, 2), lambda a: a.clone() * 2.0):
                h = step(h)
                kept.append(weakref.ref(h))
            return (h + 1).flatten(1)

    kernel = cx.NTK(Steps(), torch.randn(5, 3), engine="autograd")
    kernel @ torch.randn(20)
    assert all(ref() is None for ref in kept)


OPERATORS = {
    "NTK": lambda m, x, y: cx.NTK(m, x, copy=False),
    "autograd": lambda m, x, y: cx.NTK(m, x, copy=False, engine="autograd"),
    "GGN": lambda m, x, y: cx.GGN(m, nn.CrossEntropyLoss(), (x, y), copy=False),
    "Hessian": lambda m, x, y: cx.Hessian(m, nn.CrossEntropyLoss(), (x, y), copy=False),
    "Jacobian": lambda m, x, y: cx.Jacobian(m, x, copy=False),
}


@pytest.mark.parametrize("change", ["step", "data", "frozen"])
@pytest.mark.parametrize("name", OPERATORS)
def test_shared_parameters_take_no_memory_and_must_not_change(name, change):
    model, x, y = tied()
    model.up.weight.requires_grad_(False)
    op = OPERATORS[name](model, x, y)
    held = (op.snapshot if name == "Hessian" else op.linearization.snapshot).params
    own = dict(model.named_parameters())
    assert all(p.data_ptr() == own[k].data_ptr() for k, p in held.items())
    v = torch.randn(op.shape[1], dtype=torch.float64)
    copied = type(op)(
        *([model, nn.CrossEntropyLoss(), (x, y)] if name in ("GGN", "Hessian") else [model, x])
    )
    torch.testing.assert_close(op @ v, copied @ v)
    with torch.no_grad():
        if change == "step":
            model.down.weight.sub_(1e-9)
        elif change == "data":
            model.words.weight.data[0, 0] += 1e-6
        else:
            model.up.weight.mul_(1.001)
    with pytest.raises(
        RuntimeError, match=r"copy=False .* stay as they were .* another (down|w|up)"
    ):
        op @ v
    copied @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_every_bit_of_shared_parameters_counts(dtype, first, count):
    whole = torch.randn(first + count, dtype=dtype)
    shared = whole[first:]
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    seen = [state._sum_of_bits(shared)]
    for entry in range(count):
        for bit in (0, 22, dtype.itemsize * 8 - 1):
            flip = -(2**31) if integer == torch.int32 and bit == 31 else 1 << bit
            flip = -(2**63) if bit == 63 else flip
            shared.view(integer)[entry] ^= flip
            seen.append(state._sum_of_bits(shared))
            shared.view(integer)[entry] ^= flip
    assert seen[0] not in seen[1:]
    assert state._sum_of_bits(shared) == seen[0]


def test_half_precision_and_buffers_are_copied_all_the_same():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    x = torch.randn(5, 3)
    op = cx.NTK(model, x, copy=False)
    before = op @ torch.ones(20)
    model[1].running_mean += 1
    torch.testing.assert_close(op @ torch.ones(20), before)
    half = nn.Linear(3, 4).bfloat16()
    op = cx.NTK(half, x.bfloat16(), copy=False)
    before = op @ torch.ones(20)
    with torch.no_grad():
        half.weight.zero_()
    torch.testing.assert_close(op @ torch.ones(20), before)


def test_a_model_that_writes_its_parameters_cannot_share_them():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x):
            with torch.no_grad():
                self.inner.weight.mul_(0.9)
            return self.inner(x)

    with pytest.raises(RuntimeError, match="copy=False"):
        cx.NTK(Writes(), torch.randn(5, 3), copy=False) @ torch.ones(20)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_benchmark_of_a_large_vocabulary_runs():
    command = [sys.executable, "-m", "benchmarks.vocabulary", "--quick", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    got = json.loads(done.stdout)
    assert got["solve"]["converged"]
    assert got["ratios"]["memory"] > 0
