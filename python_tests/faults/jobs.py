"""One job for each kind of file that this package writes: ``python jobs.py NAME FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import catapult_ext as cx
from catapult_ext import toy
from catapult_ext.experiments import DemoConfig, run_demo
from catapult_ext.experiments import reproduce as rp

_trackers = {}


def sweep(folder):
    run_demo(DemoConfig(width=24, samples=24, steps=6, c=(0.5, 4.0)), out=folder / "run")


def reproduce(folder):
    settings = {"seeds": 1, "train": 32, "test": 20, "width": 32, "steps": 6, "read_at": 2.0}
    rp.reproduce(
        "fc-phases", "smoke", out=folder / "run", c=(0.5, 3.0), tell=lambda line: None, **settings
    )


def diagram(folder):
    toy.phase_diagram("width", resolution=(120, 60), steps=50, out=folder / "run")


def bifurcation(folder):
    b = torch.linspace(0.9, 2.0, 40, dtype=torch.float64)
    toy.bifurcation(b, burn_in=100, keep=32, out=folder / "run")


def dense_file(folder):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 4)
    kernel = cx.NTK(model, torch.randn(60, 6, generator=generator))
    (folder / "run").mkdir(exist_ok=True)
    kernel.dense(file=folder / "run" / "kernel.npy")


def tracker(folder):
    """A tracker writes when it is closed: after an error it has all rows, and is closed again."""
    if folder not in _trackers:
        _trackers[folder] = _tracked(folder)
    _trackers[folder].close()


def _tracked(folder):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x, y = torch.randn(20, 4), torch.randn(20, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = cx.CurvatureTracker(
        model, "half_mse", (x, y), every=5, optimizer=optimizer, out=folder / "run"
    )
    made.start()
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - y).square().sum() / 40
        loss.backward()
        optimizer.step()
        made.step(loss)
    return made


JOBS = {job.__name__: job for job in (sweep, reproduce, diagram, bifurcation, dense_file, tracker)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    JOBS[sys.argv[1]](Path(sys.argv[2]))
