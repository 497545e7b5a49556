"""Operations from several threads, in forked and spawned children, interrupted, 10 000 times."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import catapult_ext as cx
from catapult_ext import _native, ops
from catapult_ext._store import RunFolder

X, Y = torch.linspace(-1, 1, 24).reshape(8, 3), torch.linspace(0, 1, 16).reshape(8, 2)
torch.manual_seed(0)
MODEL = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
A = torch.diag(torch.arange(1.0, 33.0)) + 0.1
HANG = 1800  # seconds: for a child that was lost, not for a slow one


def work(seed):
    """Call every operation once on numbers that depend on ``seed`` only; return all results."""
    rng = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=rng) + 0.1

    a, g = [rand(9, 4)], [rand(9, 2, 5)]
    gram = ops.gram(a, g, scale=[1.0], bias=[0.5])
    chain = {"weights": [rand(1, 2, 4)], "inputs": [a[0][None]], "slopes": []}
    product = ops.ntk_matvec(rand(1, 18, 3), **chain, scale=[1.0], bias=[1.0])
    tridiagonal = ops.tridiag_eigh(rand(3, 12), rand(3, 11))
    top = ops.lanczos_dense(gram[None], 2, seed=seed)
    basis, alpha, beta = torch.eye(6)[None].contiguous(), rand(1, 3), rand(1, 3)
    ops.lanczos_step(basis, alpha, beta, rand(1, 6), 0)
    state = [rand(2, 16, 3), rand(2, 16)]
    toy = ops.toy_gd(*state, rand(5, 3), rand(5), rand(2), 20)
    moments = [rand(2, 3), rand(2, 3, 3), rand(2)]
    reduced = ops.toy_gd_reduced(*moments, rand(5, 3), rand(5), rand(2), 16.0, 20)
    scalar = ops.toy_scalar(rand(9), rand(9), 50)
    growth = ops.toy_lyapunov(*rand(3, 9).double(), 50, paths=11)
    found = cx.eigsh(cx.GGN(MODEL, "half_mse", (X, Y)), k=2, seed=seed)
    made = [gram, product, *tridiagonal, *top, basis, alpha, beta, *state, toy.loss, growth]
    return [
        t.tolist()
        for t in (*made, *moments, scalar.h, reduced.loss, found.eigenvalues, found.eigenvectors)
    ]


def test_threads_that_share_a_model_get_the_bits_that_one_thread_gets():
    torch.set_num_threads(1)  # the sums of the main thread, like those of the others
    expected = [work(seed) for seed in range(4)]
    start = threading.Barrier(4)

    def run(i):
        torch.set_num_threads(1)
        start.wait()
        return [work(seed) for seed in (i, *(2 * [*range(4)]))]

    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(run, range(4))):
            assert found == [expected[i], *expected, *expected]


def test_eight_threads_of_different_operations_get_the_bits_of_one():
    """What an interpreter without a global lock does all the time."""
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    a, g = torch.rand(64, 12, generator=rng), torch.rand(64, 3, 9, generator=rng)
    weights, v = [torch.rand(2, 3, 12, generator=rng)], torch.rand(2, 192, 2, generator=rng)
    rows, matrix = torch.rand(4, 64, generator=rng), torch.rand(2, 40, 40, generator=rng)
    matrix = matrix @ matrix.mT
    U, u = torch.rand(2, 16, 3, generator=rng), torch.rand(2, 16, generator=rng)
    x, w, q = [torch.rand(*shape, generator=rng) for shape in ((5, 3), (2, 3), (2,))]
    moments = [w, torch.eye(3).repeat(2, 1, 1), q]
    rates = torch.tensor([0.1, 0.2])

    def step():
        basis, short = torch.eye(64)[None, :4].contiguous(), torch.zeros(2, 1, 3)
        ops.lanczos_step(basis, *short, rows[:1], 0)
        return basis

    inputs = torch.stack([a, a])
    calls = [
        lambda: ops.gram([a], [g], scale=[1.0], bias=[0.5]),
        lambda: ops.ntk_matvec(
            v, weights=weights, inputs=[inputs], slopes=[], scale=[1.0], bias=[1.0]
        ),
        lambda: ops.tridiag_eigh(rows, rows[:, :63])[0],
        lambda: ops.lanczos_dense(matrix, 2).eigenvalues,
        step,
        lambda: ops.toy_gd(U.clone(), u.clone(), x, x[:, 0].clone(), rates, 50).loss,
        lambda: (
            ops.toy_gd_reduced(
                *[m.clone() for m in moments], x, x[:, 0].clone(), rates, 16.0, 50
            ).loss
        ),
        lambda: ops.toy_scalar(rows[:, 0].clone(), rows[:, 1].clone(), 50).h,
    ]
    expected = [call() for call in calls]
    start = threading.Barrier(len(calls))

    def run(i):
        torch.set_num_threads(1)
        start.wait()
        return [calls[i]() for _ in range(20)]

    with ThreadPoolExecutor(len(calls)) as pool:
        for found, one in zip(pool.map(run, range(len(calls))), expected, strict=True):
            assert all(torch.equal(f.nan_to_num(7.0), one.nan_to_num(7.0)) for f in found)


def child(queue):
    torch.set_num_threads(1)
    queue.put(work(3))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_get_the_bits_of_their_parent(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    torch.set_num_threads(1)
    expected = work(3)
    if method == "spawn":  # a fresh interpreter, which imports the package anew
        code = "import test_processes as t, torch; torch.set_num_threads(1); print(t.work(3))"
        paths = [str(Path(__file__).parent), str(Path(cx.__file__).parents[1])]
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(expected)
        return
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    found = queue.get(timeout=HANG)
    process.join()
    assert found == expected


class Interrupted(torch.nn.Module):
    """Ctrl-C in the middle of its forward pass number ``at``, counted over all copies."""

    left = 0

    def __init__(self, at):
        super().__init__()
        self.layer, Interrupted.left = torch.nn.Linear(3, 2), at

    def forward(self, x):
        Interrupted.left -= 1
        if Interrupted.left == 0:
            signal.raise_signal(signal.SIGINT)
        return self.layer(x)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


ENTRIES = {
    "Hessian": lambda m: cx.Hessian(m, "half_mse", (X, Y), engine="autograd"),
    "learning_rate_window": lambda m: cx.learning_rate_window(m, "half_mse", (X, Y)),
    "sweep": lambda m: cx.sweep(m, (X, Y), c=[0.5], steps=20),
}


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_model_and_modes_alone(name):
    model = Interrupted(2).train()
    before, fast = snapshot(model), torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(KeyboardInterrupt):
        ENTRIES[name](model)
    assert same(before, snapshot(model))
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not model._forward_hooks
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert _native._module is _native._C


@pytest.mark.nightly
def test_an_interrupted_sweep_goes_on_to_the_same_end(tmp_path):
    pytest.importorskip("matplotlib")
    settings = {"c": [0.5, 1.0, 3.0], "steps": 5}
    cx.sweep(MODEL, (X, Y), out=tmp_path / "whole", **settings)
    real, calls = RunFolder.save_part, []

    def interrupted(self, name, record):
        real(self, name, record)
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt

    RunFolder.save_part = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            cx.sweep(MODEL, (X, Y), out=tmp_path / "cut", **settings)
    finally:
        RunFolder.save_part = real
    assert not (tmp_path / "cut" / "summary.json").exists()
    cx.sweep(MODEL, (X, Y), out=tmp_path / "cut", **settings)
    for name in ("summary.json", "summary.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.nightly
@pytest.mark.parametrize("entry", ["ops", "operators", "errors"])
def test_memory_stays_over_ten_thousand_calls(entry):
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc/self/statm")
    bad = torch.ones(3, 3, dtype=torch.int64)

    def call(i):
        if entry == "ops":
            ops.gram([X], [Y.reshape(8, 2, 1)], scale=[1.0], bias=[0.0])
            ops.tridiag_eigh(A[:4, :8], A[:4, :7])
            ops.lanczos_dense(A[None], 1, seed=i)
        elif entry == "operators":
            cx.NTK(MODEL, X) @ Y.reshape(-1)
        else:
            for wrong in (lambda: cx.eigsh(bad), lambda: ops.tridiag_eigh(bad, bad)):
                with pytest.raises(TypeError):
                    wrong()

    def calls(count):
        for i in range(count):
            call(i)
        gc.collect()
        return resident()

    calls(2000)  # pools and caches fill up
    before = calls(1000)
    grown = calls(10_000) - before
    assert grown < 4e6, f"{grown / 10_000:.0f} bytes a call"
