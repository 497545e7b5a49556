"""A sweep that is killed, interrupted or damaged ends like an undisturbed one, or says why not."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest
import torch

from catapult_ext.experiments import DemoConfig, Progress, run_demo, stacked_chain
from catapult_ext.runs import RunFolderError

CONFIG = DemoConfig(width=24, samples=24, steps=6, c=(0.5, 2.1, 4.0, 400.0))


@pytest.fixture(scope="module", autouse=True)
def draw_equal_pictures_once():
    """Drawing takes longer than these small sweeps."""
    module = importlib.import_module("catapult_ext.experiments.sweep")
    drawn, draw = {}, module.sweep_figures

    def cached(summary, records):
        key = json.dumps([summary, records])
        if key not in drawn:
            drawn[key] = draw(summary, records)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sweep_figures", cached)
        yield


KILLED = """
import os, signal, sys
import torch
from catapult_ext.experiments import DemoConfig, Progress, run_demo, stacked_chain
torch.set_num_threads({threads})
stacked_chain.MOST["cpu"] = {at_once}

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Killer(Progress):
    def step(self, step, loss):
        if {kill_in_step} and self.present == {at_once} + 1 and step == 3:
            die()
    def rate(self, index, c):
        self.present = index

if not {kill_in_step}:
    replace = os.replace
    def killing(source, target):
        if str(target).endswith("rate_0003.json"):
            die()
        replace(source, target)
    os.replace = killing
run_demo({config!r}, out={out!r}, progress=Killer())
"""


def files(path):
    return {str(p.relative_to(path)): p for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module", autouse=True)
def two_rates_at_once():
    """Two chunks of stacked rates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stacked_chain.MOST, "cpu", 2)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    run_demo(CONFIG, out=path)
    return path


def test_run_folder_holds_what_is_promised(undisturbed):
    names = set(files(undisturbed))
    assert {"config.json", "summary.json", "summary.csv", "timing.json", "report.html"} <= names
    pictures = [n for n in names if n.endswith(".png")]
    assert len(pictures) == 6
    assert not [n for n in names if n.endswith(".tmp")]
    for name in pictures:
        content = (undisturbed / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert content.endswith(b"IEND\xaeB`\x82")
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["rates"][0]["phase"] == "lazy"
    assert "seconds" not in (undisturbed / "summary.json").read_text()
    csv = (undisturbed / "summary.csv").read_text().splitlines()
    assert len(csv) == 5
    assert csv[0].startswith("c,eta,phase")
    report = (undisturbed / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 6
    assert "http" not in report
    assert "src=" not in report.replace('src="data:', "")
    timing = json.loads((undisturbed / "timing.json").read_text())
    assert set(timing["seconds"]) == {"initial", "linearised", *(f"rate_000{i}" for i in range(4))}


@pytest.mark.parametrize("kill_in_step", [True, False], ids=["in-a-step", "in-a-write"])
def test_kill_9_then_the_same_command(undisturbed, tmp_path, kill_in_step):
    out = tmp_path / "run"
    settings = {"threads": torch.get_num_threads(), "config": CONFIG, "out": str(out)}
    code = KILLED.format(kill_in_step=kill_in_step, at_once=2, **settings)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    done = {n: p.stat().st_mtime_ns for n, p in files(out / "parts").items() if p.suffix == ".json"}
    stored = {"initial.json", "rate_0000.json", "rate_0001.json"}
    assert set(done) == (stored if kill_in_step else stored | {"rate_0002.json"})
    assert not (out / "summary.json").exists()

    started = []

    class Watch(Progress):
        def rate(self, index, c):
            started.append(index)

    run_demo(CONFIG, out=out, progress=Watch())
    assert started == [2, 3]  # the chunk is computed whole, and what it stored is left as it is
    now = {n: p.stat().st_mtime_ns for n, p in files(out / "parts").items()}
    assert {n: now[n] for n in done} == done
    for name in ("summary.json", "summary.csv", "config.json"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    for name, path in files(out / "parts").items():
        assert path.read_bytes() == (undisturbed / "parts" / name).read_bytes(), name
    assert not [n for n in files(out) if n.endswith(".tmp")]


def test_finished_run_is_reported_again_without_training(undisturbed, tmp_path):
    before = {n: p.read_bytes() for n, p in files(undisturbed).items()}
    (undisturbed / "report.html").unlink()

    class Never(Progress):
        def begin(self, rates, steps, finished):
            raise AssertionError("trained again")

    result = run_demo(CONFIG, out=undisturbed, progress=Never())
    assert result.phases[0] == "lazy"
    assert {n: p.read_bytes() for n, p in files(undisturbed).items()} == before


def test_interrupt_leaves_a_folder_to_go_on_with(undisturbed, tmp_path):
    class Interrupt(Progress):
        def step(self, step, loss):
            if step == 5:
                raise KeyboardInterrupt

    for _ in range(2):  # the lock is given back, or the second one would be refused
        with pytest.raises(KeyboardInterrupt):
            run_demo(CONFIG, out=tmp_path / "run", progress=Interrupt())
    result = run_demo(CONFIG, out=tmp_path / "run")
    assert result.summary == json.loads((undisturbed / "summary.json").read_text())


def test_damaged_part_is_named_and_redone_once_deleted(tmp_path):
    out = tmp_path / "run"
    run_demo(CONFIG, out=out)
    summary = (out / "summary.json").read_bytes()
    path = out / "parts" / "rate_0001.json"
    path.write_bytes(path.read_bytes()[:-20])
    before = {n: p.read_bytes() for n, p in files(out).items()}
    with pytest.raises(RunFolderError, match=r"rate_0001\.json is damaged; delete it"):
        run_demo(CONFIG, out=out)
    assert {n: p.read_bytes() for n, p in files(out).items()} == before
    path.unlink()
    run_demo(CONFIG, out=out)
    assert (out / "summary.json").read_bytes() == summary


def test_another_configuration_needs_fresh(tmp_path):
    out = tmp_path / "run"
    small = DemoConfig(width=8, samples=12, steps=1, c=(0.5,))
    run_demo(small, out=out)
    other = DemoConfig(width=8, samples=12, steps=1, c=(1.0,))
    with pytest.raises(RunFolderError, match=r"another configuration \(differing in c\)"):
        run_demo(other, out=out)
    assert run_demo(other, out=out, fresh=True).c == [1.0]


def test_unwritable_folder_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("x")

    class Never(Progress):
        def begin(self, rates, steps, finished):
            raise AssertionError("trained")

    with pytest.raises(RunFolderError, match="run"):
        run_demo(CONFIG, out=tmp_path / "file" / "run", progress=Never())


def test_missing_matplotlib_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'catapult_ext\[experiments\]'"):
        run_demo(CONFIG, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
