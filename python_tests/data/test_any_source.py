"""Data of your own: a function, or an archive of doubles, labels and raw pixels, everywhere."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from catapult_ext import cli, data
from catapult_ext.experiments import reproduce as rp

SOURCE = """
import torch
from catapult_ext import data

def pixels():
    draw = torch.Generator().manual_seed(0)
    return torch.rand(40, 1, 8, 8, generator=draw), torch.arange(40) % 3

def whole():
    return data.digits(train=30, test=10)

def wrong():
    return 3

def fails():
    return torch.ones(2) @ torch.ones(3)
"""
NET = """
import catapult_ext as cx

def net():
    return cx.models.fully_connected(64, 4, width=12, depth=1)

def ten():
    return cx.models.fully_connected(64, 10, width=12, depth=1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(SOURCE)
    (tmp_path / "own_net.py").write_text(NET)
    rng = np.random.RandomState(0)
    x, y = rng.randint(0, 256, (40, 64)).astype(np.float64), np.arange(40) % 4
    np.savez(tmp_path / "raw.npz", x=x, y=y)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_functions_of_yours(folder):
    found = data.named("own_data:pixels", train=30, flatten=True)
    assert found.x_train.shape == (30, 64)
    assert found.y_train.shape == (30, 3)
    assert found.classes
    assert len(found.source) == 16
    two = data.named("own_data:pixels", classes=(2, 0), targets="signed")
    assert set(two.y_train.flatten().tolist()) == {-1.0, 1.0}
    assert len(data.named("own_data:whole").x_test) == 10
    scaled = data.named("own_data:pixels", standardisation="global").x_train
    assert scaled.mean().abs() < 1e-6
    with pytest.raises(TypeError, match="data must be a Dataset, "):
        data.named("own_data:wrong")
    with pytest.raises(ValueError, match=r"data own_data:fails must return .*, got RuntimeError"):
        data.named("own_data:fails")
    with pytest.raises(ValueError, match="must have a function nothing"):
        data.named("own_data:nothing")


def test_raw_pixels_are_told_and_scaled_on_request(folder):
    with pytest.warns(RuntimeWarning, match=r"inputs of raw\.npz reach 255 .* --standardise"):
        data.named("raw.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = data.named("raw.npz", standardisation="global")
    assert found.x_train.std() == pytest.approx(1, abs=1e-3)
    assert found.x_train.dtype == torch.float32
    assert found.y_train.shape == (40, 4)


def test_a_missing_test_set_names_the_way_out(folder):
    with pytest.raises(ValueError, match=r"this data has no test set .* choose test = 0, got test"):
        data.named("raw.npz", test=10)


RAW = ("--data", "raw.npz", "--standardise", "global")


@pytest.mark.parametrize("loss", ["half_mse", "cross_entropy"])
@pytest.mark.parametrize("command", ["sweep", "probe", "max-lr", "reproduce"])
def test_every_command_takes_the_same_data(capsys, folder, command, loss):
    given = {
        "sweep": ("--c", "1", "--steps", 2, "--width", 8, "--samples", 30, "--loss", loss),
        "probe": ("own_net:net", "--k", 1, "--samples", 30, "--loss", loss),
        "max-lr": ("own_net:net", "--trial-steps", 0, "--samples", 30, "--loss", loss),
        "reproduce": (
            *("fc-phases", "--scale", "smoke", "--set", "test=0", "--set", "train=30"),
            *("--set", "seeds=1", "--set", "c=1", "--set", f"loss={loss}"),
        ),
    }[command]
    code, _, err = run(capsys, command, *given, *RAW)
    assert code == 0, err
    assert "taken as they are" not in err
    given = tuple("own_net:ten" if a == "own_net:net" else a for a in given)
    more = ("--out", folder / "b") if command in ("sweep", "reproduce") else ()
    more += ("--set", "train=20") if command == "reproduce" else ()
    code, _, err = run(capsys, command, *given, "--data", "own_data:whole", *more)
    assert code == 0, err


@pytest.mark.parametrize("name", ["sgd-catapults", "c-act-table", "width-sharpening"])
def test_experiments_that_had_data_of_their_own(folder, name):
    small = {"seeds": 1, "train": 20}
    small |= {"batches": (4,), "steps": 2} if name == "sgd-catapults" else {}
    small |= {"activations": ("relu",), "classes": (0, 1)} if name == "c-act-table" else {}
    small |= {"hessian_seeds": 0, "c": (2.1, 6.0)} if name == "width-sharpening" else {}
    done = rp.reproduce(name, "smoke", data="raw.npz", standardise="global", **small)
    assert all(claim.on.startswith("raw.npz, 20 samples") for claim in done.outcome.claims)


def test_the_way_of_scaling_is_part_of_a_run(folder):
    small = {"data": "raw.npz", "test": 0, "train": 30, "seeds": 1, "c": (1.0,), "steps": 2}
    rp.reproduce("fc-phases", "smoke", out="run", standardise="global", **small)
    told = (folder / "run" / "claims.json").read_text()
    assert "--standardise global --data raw.npz" in told
    with pytest.raises(RuntimeError, match="standardise"):
        rp.reproduce("fc-phases", "smoke", out="run", standardise="pixel", **small)
