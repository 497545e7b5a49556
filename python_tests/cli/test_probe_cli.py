"""catapult-ext probe and max-lr, in this process."""

import io
import json

import numpy as np
import pytest
import torch
from cli.command_line import run

import catapult_ext as cx
from catapult_ext import _progress
from catapult_ext.experiments import probing

SOURCE = """
import catapult_ext as cx
import torch

def net():
    return cx.models.fully_connected(64, 10, width=12, depth=1)

SIZE = 3

def number():
    return SIZE

def heavy_ball(model):
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)

def same(model):
    return model

def numbers():
    return [1, 2, 3]

def unlike():
    return [(torch.zeros(2, n), torch.zeros(2, 1)) for n in (3, 4)]

def loader():
    data = cx.data.digits(train=24)
    for i in range(0, 24, 10):
        yield data.x_train[i : i + 10], data.y_train[i : i + 10]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "probed_net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("command", "calls"),
    [
        (["probe", "--json"], ["eigsh", "learning_rate_window"]),
        (["probe", "--out", "picture.png"], ["eigsh", "learning_rate_window", "spectral_density"]),
        (["max-lr", "--measure", "3"], ["learning_rate_window"]),
    ],
)
def test_long_commands_show_their_progress_on_stderr(capsys, folder, monkeypatch, command, calls):
    given = [command[0], "probed_net:net", *command[1:], "--samples", 24]
    code, quiet, err = run(capsys, *given)
    assert code == 0, err
    monkeypatch.setitem(_progress._BETWEEN, "lines", 0.0)
    code, out, err = run(capsys, *given)
    assert code == 0, err
    assert out == quiet
    named = [line.split(":")[0].removeprefix("catapult_ext.") for line in err.splitlines()]
    assert list(dict.fromkeys(named)) == calls


def test_probe_prints_every_operator_and_the_window(capsys, folder):
    picture = folder / "new" / "spectrum.png"
    arguments = ["probed_net:net", "--samples", 24, "--k", 2, "--out", picture]
    code, out, err = run(capsys, "probe", *arguments)
    assert code == 0, err
    data = cx.data.digits()
    x, y = data.x_train[:24], data.y_train[:24]
    model = cx.models.fully_connected(64, 10, width=12, depth=1)
    exact = torch.linalg.eigvalsh(cx.NTK(model, x).dense())
    for value in (exact[-1].item(), exact[-2].item(), exact[-1].item() / 24):
        assert any(f"{v:.4g}"[:4] == f"{value:.4g}"[:4] for v in _numbers(out)), (value, out)
    window = cx.learning_rate_window(model, "half_mse", (x, y))
    assert f"{window.eta_crit:.3g}" in out
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("out", ["a.txt", ".", "probed_net.py/a.png"])
def test_no_probing_for_a_picture_that_cannot_be_written(capsys, folder, monkeypatch, out):
    monkeypatch.setattr(probing, "probe", None)
    code, _, err = run(capsys, "probe", "probed_net:net", "--out", out)
    assert code == 1
    assert "catapult_ext.probe: --out must" in err


def _numbers(text):
    found = []
    for word in text.split():
        try:
            found.append(float(word))
        except ValueError:
            continue
    return found


def test_max_lr_measures(capsys, folder):
    code, out, err = run(capsys, "max-lr", "probed_net:net", "--samples", 24, "--measure", 20)
    assert code == 0, err
    assert "(measured in " in out
    assert "eta_crit" in out
    code, out, err = run(capsys, "max-lr", "probed_net:net", "--samples", 24)
    assert code == 0, err
    assert "(trials of " in out
    assert "start  " in out
    code, out, err = run(capsys, "max-lr", "probed_net:net", "--samples", 24, "--trial-steps", 0)
    assert code == 0, err
    assert "(estimate: ReLU, one hidden layer)" in out


SMALL = ["probed_net:net", "--samples", 24, "--trial-steps", 0]


@pytest.mark.parametrize(
    ("given", "make"),
    [
        (["SGD(lr=0.1, momentum=0.9)"], lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (["sgd"], lambda p: torch.optim.SGD(p, lr=1e-3)),
        (["probed_net:heavy_ball"], lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.5)),
        (["Adam(lr=1e-2, betas=(0.8, 0.99))", "--burn-in", 3], None),
    ],
)
def test_max_lr_of_an_optimizer(capsys, folder, given, make):
    code, out, err = run(capsys, "max-lr", *SMALL, "--json", "--optimizer", *given)
    assert code == 0, err
    found = json.loads(out)
    assert found["optimizer"] == given[0]
    data = cx.data.digits()
    batch = data.x_train[:24], data.y_train[:24]
    model = cx.models.fully_connected(64, 10, width=12, depth=1)
    options = {"trial_steps": 0}
    if make is None:
        options["burn_in"] = 3
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.8, 0.99))
    else:
        optimizer = make(model.parameters())
    window = cx.learning_rate_window(model, "half_mse", batch, optimizer, **options)
    assert found["window"]["rule"] == window.rule
    assert found["window"]["eta_crit"] == pytest.approx(window.eta_crit, rel=1e-5)
    assert found["window"]["evidence"]["burn_in"] == options.get("burn_in", 0)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("adamm", "must be a class of torch.optim or package.module:function, got 'adamm' (did"),
        ("SGD(lr=-1)", "--optimizer SGD(lr=-1) must return without an error, got ValueError"),
        ("SGD(0.1)", "--optimizer must be a name with settings, such as 'SGD(lr=0.1, momentum"),
        ("SGD(lr=open)", "--optimizer must be a name with settings"),
        ("SGD(speed=1)", "unexpected keyword argument 'speed'"),
        ("Adam", "burn_in"),
        ("LBFGS", "needs no closure"),
        ("probed_net:numbers", "--optimizer probed_net:numbers must return without an error"),
        ("probed_net:same", "must return a torch.optim.Optimizer, got Sequential"),
    ],
)
def test_wrong_optimizers_are_one_line(capsys, folder, spec, text):
    code, out, err = run(capsys, "max-lr", *SMALL, "--optimizer", spec)
    assert code == 1
    assert text in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_data_sources_agree(folder):
    x, y = cx.data.digits(train=24).train
    np.savez(folder / "a.npz", x=x.numpy(), y=y.numpy())
    torch.save({"x": x, "y": y}, folder / "a.pt")
    torch.save((x, y), folder / "b.pt")
    np.savez(folder / "b.npz", x_train=x.numpy().astype(">f4"), y_train=y.numpy())
    torch.save({"x_train": x, "y_train": y}, folder / "c.pt")
    for source in ("a.npz", "b.npz", "a.pt", "b.pt", "c.pt", "probed_net:loader"):
        found = probing.load_data(source)
        assert torch.equal(found[0], x)
        assert torch.equal(found[1], y)
        assert len(probing.load_data(source, 7)[0]) == 7


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no_such_module_here:net"], "module that can be imported"),
        (["probed_net:absent"], "module probed_net must have a function absent, got no such name"),
        (["probed_net:SIZE"], "module probed_net must have a function SIZE, got int"),
        (["probed_net:"], "MODEL must be package.module:factory, got probed_net:"),
        (["probed_net:net", "--data", "probed_net:absent"], "DATA: module probed_net must have"),
        (["probed_net:net", "--data", "no_such_module:x"], "module that can be imported"),
        (["probed_net:net", "--data", "probed_net:number"], "must return (x, y) or batches"),
        (["probed_net:net", "--data", "probed_net:numbers"], "got a batch of type int"),
        (
            ["probed_net:net", "--data", "probed_net:unlike"],
            "batches of probed_net:unlike must fit",
        ),
        (["probed_net:net", "--samples", "-5"], "samples must be >= 1, got -5"),
        (["probed_net:net", "--samples", "5000"], "train must be in 1..1796, got 5000"),
        (["probed_net"], "package.module:factory"),
        (["probed_net:number"], "must return a torch.nn.Module"),
        (["probed_net:net", "--data", "absent.npz"], "DATA must be a file"),
        (["probed_net:net", "--data", "probed_net.py"], "DATA must end in"),
        (
            ["probed_net:net", "--loss", "hinge"],
            "catapult_ext.losses: loss must be one of half_mse, ",
        ),
    ],
)
def test_refused_in_one_line(capsys, folder, arguments, text):
    code, _, err = run(capsys, "max-lr", *arguments)
    assert code == 1
    assert text in err
    assert "Traceback" not in err


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def pt(held):
    file = io.BytesIO()
    torch.save(held, file)
    return file.getvalue()


X, Y = np.ones((6, 64), np.float32), np.ones((6, 10), np.float32)
FILES = {
    "empty.npz": (b"", "is not an .npz archive, or is truncated"),
    "garbage.npz": (b"hello" * 9, "is not an .npz archive, or is truncated"),
    "cut.npz": (npz(x=X, y=Y)[:300], "is not an .npz archive, or is truncated"),
    "flipped.npz": (npz(x=X, y=Y).replace(b"\0\0\x80?", b"\0\0\x81?", 1), "is corrupted: Bad CRC"),
    "objects.npz": (npz(x=X.astype(object), y=Y), "array 'x' holds Python objects"),
    "text.npz": (npz(x=X.astype(str), y=Y), "expected numbers"),
    "number.npz": (npz(x=X[0, 0], y=Y), "is a single number"),
    "x.npz": (npz(x=X), "lacks the array y_train (it holds x)"),
    "empty.pt": (b"", "is truncated or no file of torch.save: EOFError"),
    "garbage.pt": (b"hello" * 9, "is truncated or no file of torch.save"),
    "cut.pt": (pt(torch.from_numpy(X))[:300], "is truncated or no file of torch.save"),
    "objects.pt": (pt(torch.nn.Linear(2, 2)), "holds Python objects"),
    "int.pt": (
        pt({"x": torch.from_numpy(X), "y": 3}),
        "y of int.pt must be a torch.Tensor, got int",
    ),
    "number.pt": (pt((torch.tensor(3.0), torch.tensor(3.0))), "must hold a row a sample"),
    "sparse.pt": (pt((torch.eye(3).to_sparse(), torch.eye(3))), "must be a dense tensor"),
    "tensor.pt": (pt(torch.from_numpy(X)), "must hold x and y, got Tensor"),
    "other.pt": (pt({"z": torch.from_numpy(X)}), "lacks the array x_train (it holds z)"),
}


@pytest.mark.parametrize("name", FILES)
def test_data_files_are_refused_in_one_line(capsys, folder, name):
    content, text = FILES[name]
    (folder / name).write_bytes(content)
    code, _, err = run(capsys, "probe", "probed_net:net", "--data", name)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith("error: catapult_ext.")
    assert name in err
    assert text in err


def test_more_digits_than_by_default(folder):
    assert len(probing.load_data("digits", 600)[0]) == 600
    assert torch.equal(probing.load_data("digits", 24)[0], cx.data.digits().x_train[:24])


@pytest.mark.parametrize(
    ("model", "data"), [("gpt", "sums"), ("vit", "digits28"), ("small-cnn", "digits28")]
)
def test_built_in_networks_by_name(capsys, model, data):
    """They take the shapes of the data."""
    arguments = [model, "--data", data, "--samples", 4, "--loss", "cross_entropy"]
    code, out, err = run(capsys, "max-lr", *arguments, "--trial-steps", 0)
    assert code == 0, err
    assert "lambda_0" in out


def test_networks_that_do_not_fit_the_data(capsys):
    code, _, err = run(capsys, "probe", "gpt", "--data", "digits28")
    assert (code, "MODEL gpt and data of characters, such as --data sums" in err) == (1, True)
    assert "Traceback" not in err
