"""A run that ends at any write of its folder resumes to the same bytes: sweeps and experiments."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import catapult_ext as cx
from catapult_ext import _store, data, models
from catapult_ext.experiments import reproduce as rp
from catapult_ext.figures.line_panel import Panel, Series

TIMES = {"timing.json", "report.html"}  # hold the seconds of each process


class Killed(BaseException):
    """What no clause of the library catches."""


@pytest.fixture
def killing(monkeypatch):
    """A function that has the n-th write of a file fail, half of it left behind as after a kill."""
    replace, left = _store.os.replace, {"writes": 0}

    def counted(source, target):
        left["writes"] -= 1
        if left["writes"] == 0:
            shutil.copy(source, Path(target).with_name(f".{Path(target).name}.1.tmp"))
            raise Killed
        replace(source, target)

    monkeypatch.setattr(_store.os, "replace", counted)
    return lambda n: left.update(writes=n)


def pictures(monkeypatch):
    """Drawing takes longer than all else, and is the same every time."""
    sweep = importlib.import_module("catapult_ext.experiments.sweep")
    report = importlib.import_module("catapult_ext.experiments.reproduce.report")
    drawn = {"png": b"p", "svg": b"<svg/>", "pdf": b"d"}
    monkeypatch.setattr(sweep, "sweep_figures", lambda *_: {"loss": b"p"})
    monkeypatch.setattr(report, "draw_panel", lambda *_: drawn)


def a_sweep(out):
    found = data.teacher(10, 4, in_features=3, out_features=2, seed=1)
    net = models.fully_connected(3, 2, width=6, depth=1)
    cx.sweep(net, found, c=(0.5, 3.0, 1e3), steps=3, out=out)


@dataclass(frozen=True)
class Settings:
    data: str = "teacher"
    seeds: int = 4


def run(s, context):
    found = context.data(s.data, train=6, test=0)

    def part(seed):
        draw = torch.Generator().manual_seed(seed)
        return {"value": float(found.x_train.sum() + torch.randn((), generator=draw))}

    parts = [context.part(f"s{seed}", lambda seed=seed: part(seed)) for seed in range(s.seeds)]
    rows = [{"seed": i, "value": p["value"]} for i, p in enumerate(parts)]
    panel = Panel("t", "x", "y", [Series("a", [1.0, 2.0], [1.0, 2.0])])
    return rp.Outcome([rp.Claim("a", "b", "c", True, "")], {"rows": rows}, {"p": panel})


experiment = rp.Experiment("killed", "a test", "this file", Settings(), run)


def an_experiment(out):
    rp.reproduce(f"{__name__}:experiment", out=out)


def files(folder):
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if name not in TIMES}


def an_overflow(out):
    """From below the cut to infinity in one step: the loss is stored as null."""
    rp.reproduce("fc-phases", "smoke", out=out, seeds=1, steps=2, c=(1.0, 3.0, 1e12))


def a_sure_softmax(out):
    """Cross entropy beyond its edge: a softmax that leaves nothing to the other classes."""
    found, net = data.digits(train=24, test=8), models.fully_connected(64, 10, width=32, depth=3)
    cx.sweep(net, found, c=(1.0, 64.0, 96.0), steps=6, loss="cross_entropy", out=out)


# a softmax so sure has no curvature that float32 can hold: the sweep says so, and ends
@pytest.mark.filterwarnings("ignore:.*no curvature at step")
@pytest.mark.parametrize(
    ("work", "kills"), [(a_sweep, 99), (an_experiment, 99), (an_overflow, 10), (a_sure_softmax, 10)]
)
def test_killed_at_the_nth_write(work, kills, killing, tmp_path, monkeypatch):
    pictures(monkeypatch)
    work(tmp_path / "whole")
    wanted = files(tmp_path / "whole")
    tried = 0
    for n in range(1, kills + 1):
        out = tmp_path / str(n)
        killing(n)
        try:
            work(out)
            break  # there are fewer writes
        except Killed:
            tried += 1
        finally:
            killing(0)
        assert [p for p in out.rglob(".*.tmp")]
        assert files(out) != wanted
        work(out)
        assert files(out) == wanted
    assert tried >= 10
    assert {name.split("/")[0] for name in wanted} >= {"config.json", "parts"}
