"""catapult-ext probe and max-lr, in this process."""

import numpy as np
import pytest
import torch

import catapult_ext as cx
from catapult_ext import cli
from catapult_ext.experiments import probing

SOURCE = """
import catapult_ext as cx
import torch

def net():
    return cx.models.fully_connected(64, 10, width=12, depth=1)

def number():
    return 3

def loader():
    data = cx.data.digits(train=24)
    for i in range(0, 24, 10):
        yield data.x_train[i : i + 10], data.y_train[i : i + 10]
"""


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "probed_net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_probe_prints_every_operator_and_the_window(capsys, folder):
    picture = folder / "spectrum.png"
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
    assert "(measured)" in out
    assert "eta_crit" in out


def test_data_sources_agree(folder):
    x, y = cx.data.digits(train=24).train
    np.savez(folder / "a.npz", x=x.numpy(), y=y.numpy())
    torch.save({"x": x, "y": y}, folder / "a.pt")
    torch.save((x, y), folder / "b.pt")
    for source in ("a.npz", "a.pt", "b.pt", "probed_net:loader"):
        found = probing.load_data(source)
        assert torch.equal(found[0], x)
        assert torch.equal(found[1], y)
        assert len(probing.load_data(source, 7)[0]) == 7


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no_such_module_here:net"], "module that can be imported"),
        (["probed_net:absent"], "module probed_net must have, got absent"),
        (["probed_net"], "package.module:factory"),
        (["probed_net:number"], "must return a torch.nn.Module"),
        (["probed_net:net", "--data", "absent.npz"], "DATA must be a file"),
        (["probed_net:net", "--data", "probed_net.py"], "DATA must end in"),
        (["probed_net:net", "--loss", "hinge"], "--loss must be one of"),
    ],
)
def test_refused_in_one_line(capsys, folder, arguments, text):
    code, _, err = run(capsys, "max-lr", *arguments)
    assert code == 1
    assert text in err
    assert "Traceback" not in err
