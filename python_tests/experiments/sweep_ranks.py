"""What one rank of the shared sweeps does: `python sweep_ranks.py MODE RANK SIZE STORE OUT`."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import catapult_ext as cx
from catapult_ext import _processes
from catapult_ext.experiments import Progress

C = (0.5, 1.0, 1.5, 2.2, 2.6, 3.0)
MANY = tuple(0.2 * i for i in range(1, 21))  # three chunks of stacked rates
SETTINGS = {"c": C, "steps": 40, "linearised": True}


class Alone(torch.nn.Sequential):
    """A network whose rates train one by one."""


def problem(kind=Alone):
    torch.manual_seed(0)
    model = kind(torch.nn.Linear(5, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    x = torch.randn(24, 5)
    return model, (x, x[:, :1].sin())


class Waiting(Progress):
    """Leave rates to the last rank: no step until that one is about to end."""

    def __init__(self, ending):
        self.ending = ending

    def step(self, step, loss):
        while not self.ending.exists():
            time.sleep(0.01)


class Fatal(Progress):
    """End the process, or raise, in a rate of its own; of two ranks in its second one."""

    def __init__(self, size, ending, error=None):
        self.ending, self.error = ending, error
        self.left, self.rates = 2 if size == 2 else 1, 0

    def rate(self, index, c):
        self.rates += 1

    def step(self, step, loss):
        if self.rates == self.left and step > 20:
            self.ending.touch()
            if self.error is None:
                os._exit(9)
            raise self.error


class Clock:
    """Seconds pass from the loss of a rank on, one with each look: no busy machine is a loss."""

    def __init__(self, ending):
        self.ending, self.now = ending, 0.0

    def monotonic(self):
        self.now += self.ending.exists()
        return self.now

    def sleep(self, seconds):
        time.sleep(seconds)


def main():
    mode, store, out = sys.argv[1], *sys.argv[4:]
    rank, size = map(int, sys.argv[2:4])
    torch.set_num_threads(1)
    ending = Path(f"{store}-ending")
    _processes.time = Clock(ending)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    last = rank == size - 1
    model, data = problem(torch.nn.Sequential if mode == "stacked" else Alone)
    if mode == "stacked":
        SETTINGS["c"] = MANY
    progress = Waiting(ending) if mode in ("lost", "failed") else None
    if last and mode == "lost":
        progress = Fatal(size, ending)
    elif last and mode == "failed":
        progress = Fatal(size, ending, ValueError("no such luck"))
    elif last and mode == "differs":
        model[0].weight.data += 1
    try:
        found = cx.sweep(model, data, out=out, group="world", progress=progress, **SETTINGS)
    except (RuntimeError, ValueError) as error:
        print(error, flush=True)
        os._exit(3)
    print(found.summary["lambda0"], len(found.records))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
