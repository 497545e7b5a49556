"""A signal ends every long native loop; a loop that missed it would run for days."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEPS = 10**12
PROGRAM = """
import signal
import torch
import catapult_ext as cx
from catapult_ext import ops

torch.set_num_threads({threads})
F64 = torch.float64
STEPS = {steps}

class Asked(BaseException):
    pass

def ask(number, frame):
    raise Asked

one = torch.ones(5, dtype=F64)
data = {{"x": torch.tensor([[1.0, 0.5]]), "y": torch.tensor([0.3])}}
rare = {{"steps": STEPS, "record_every": STEPS, "curvature_every": STEPS}}

CALLS = {{
    "toy_scalar": lambda: ops.toy_scalar(0.3 * one, 0.2 * one, STEPS, early_exit=False),
    "toy_lyapunov": lambda: ops.toy_lyapunov(one, one, 0.5 * one, STEPS, paths=5, burn_in=2),
    "direct": lambda: cx.toy.simulate(c=[1.0, 3.0], width=32, form="direct", **data, **rare),
    "reduced": lambda: cx.toy.simulate(c=[1.0, 3.0], width=32, form="reduced", **data, **rare),
    "relu": lambda: cx.toy.simulate(c=[0.5, 1.0], width=32, activation="relu", **data, **rare),
}}
signal.signal(signal.SIGALRM, ask)
for name, call in CALLS.items():
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        call()
    except Asked:
        print(name)
small = cx.toy.simulate(c=[1.0], width=32, steps=3, **data)  # nothing is left in a bad state
print(tuple(small.loss.shape))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_signal_ends_every_native_loop(threads):
    program = PROGRAM.format(threads=threads, steps=STEPS)
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    ended = ["toy_scalar", "toy_lyapunov", "direct", "reduced", "relu", "(1, 4)"]
    assert run.stdout.splitlines() == ended


PIECES = """
import signal
import torch
from catapult_ext import _native

class Asked(BaseException):
    pass

def ask(number, frame):
    raise Asked

torch.set_num_threads({threads})
n, width = 6000, 6000
a, g = torch.ones(n, width), torch.ones(n, 1, 1)
out = torch.full((n, n), torch.nan)
signal.signal(signal.SIGALRM, ask)
signal.setitimer(signal.ITIMER_REAL, 0.15)
try:
    _native.call("gram", out.device, [a], [g], [], [], [1.0], [0.0], 0, 0, out)
except Asked:
    pass
print(bool(out.isnan().any()))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_signal_ends_a_loop_over_pieces(threads):
    """Without it the matrix is whole before the handler runs."""
    command = [sys.executable, "-c", PIECES.format(threads=threads)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "True\n"
