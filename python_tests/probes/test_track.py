"""Top eigenvalues along checkpoints: in order, warm-started, and refused by name."""

import sys

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.probes import CheckpointError
from catapult_ext.probes.checkpoints import checkpoint_files, load_checkpoint

X, Y = torch.linspace(-1, 1, 24).reshape(8, 3), torch.linspace(0, 1, 16).reshape(8, 2)


def net(seed=0, width=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2)).eval()


def near(model, seed):
    """A state a little away from that of ``model``."""
    torch.manual_seed(seed)
    return {
        key: t + 0.01 * torch.randn_like(t) if t.is_floating_point() else t
        for key, t in model.state_dict().items()
    }


@pytest.mark.parametrize("quantity", ["ggn", "hessian", "ntk"])
def test_values_are_those_of_each_state(quantity):
    model = net()
    states = [near(model, seed) for seed in range(4)]
    before = {key: t.clone() for key, t in model.state_dict().items()}
    found = cx.track(model, states, "half_mse", (X, Y), 2, quantity=quantity, tol=1e-6)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    for row, state in zip(found.rows, states, strict=True):
        other = net()
        other.load_state_dict(state)
        if quantity == "ntk":
            exact = cx.NTK(other, X).dense()
        else:
            kind = {"ggn": cx.GGN, "hessian": cx.Hessian}[quantity]
            exact = kind(other, "half_mse", (X, Y)).dense()
        top = torch.linalg.eigvalsh(exact.double()).flip(0)[:2]
        assert row["values"] == pytest.approx(top.tolist(), rel=1e-4)
    assert [row["index_check"] for row in found.rows[1:]] == ["inherited"] * 3
    assert found.rows[1]["products"] < found.rows[0]["products"]


def test_files_come_in_natural_order(tmp_path):
    for step in (10, 9, 100, 1):
        torch.save(net().state_dict(), tmp_path / f"step{step}.pth")
    (tmp_path / "notes.txt").write_text("")
    torch.save(net().state_dict(), tmp_path / "step2.ckpt")
    names = [file.stem for file in checkpoint_files("track", tmp_path)]
    assert names == ["step1", "step2", "step9", "step10", "step100"]
    found = cx.track(net(), tmp_path, "half_mse", (X, Y))
    assert found.steps == [1, 2, 9, 10, 100]


def test_folders_of_a_trainer_are_one_checkpoint_each(tmp_path):
    for step in (500, 1000):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        torch.save(net(step).state_dict(), folder / "pytorch_model.bin")
        torch.save({"state": {}}, folder / "optimizer.pt")
    found = cx.track(net(), str(tmp_path), "half_mse", (X, Y))
    assert [row["checkpoint"] for row in found.rows] == ["checkpoint-500", "checkpoint-1000"]
    one = cx.track(net(), tmp_path / "checkpoint-500", "half_mse", (X, Y))
    assert one.rows[0]["values"] == found.rows[0]["values"]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state, "loss": torch.tensor(1.0)},
        lambda state: {f"module.{key}": t for key, t in state.items()},
        lambda state: {"state_dict": {f"model.{key}": t for key, t in state.items()}},
        lambda state: {f"_orig_mod.{key}": t for key, t in state.items()},
    ],
)
def test_state_dicts_inside_what_trainers_write(tmp_path, wrapped):
    state = near(net(), 1)
    torch.save(wrapped(state), tmp_path / "last.pt")
    model = net(2)
    load_checkpoint(model, tmp_path / "last.pt", "track")
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(near(net(), 1), tmp_path / "model.safetensors")
    model = net(2)
    load_checkpoint(model, tmp_path / "model.safetensors", "track")
    assert torch.equal(model[0].weight, near(net(), 1)["0.weight"])


def test_without_safetensors_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="needs the package safetensors: pip install"):
        load_checkpoint(net(), tmp_path / "model.safetensors", "track")


def test_another_model_is_named_and_results_are_kept():
    states = [net().state_dict(), net(1).state_dict(), net(0, width=4).state_dict()]
    told = []
    with pytest.raises(ValueError, match=r"track: the state dict must be a checkpoint of") as error:
        cx.track(net(), states, "half_mse", (X, Y), tell=told.append)
    text = str(error.value)
    assert "7 of another shape (0.weight (4, 3) for (5, 3), 0.bias (4,) for (5,), " in text
    assert error.value.found.rows == told
    assert len(told) == 2
    del states[0]["0.weight"]
    with pytest.raises(CheckpointError, match=r"got keys 1 missing \(0\.weight\)") as error:
        cx.track(net(), states, "half_mse", (X, Y))
    assert len(error.value.found) == 0


def test_a_refused_checkpoint_leaves_the_model_as_it_was():
    model, state = net(), net(1).state_dict()
    state["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(extra\)"):
        load_checkpoint(model, state, "track")
    assert torch.equal(model[0].weight, net()[0].weight)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "must be tensors written by torch.save or safetensors .* got EOFError"),
        (b"hello" * 9, "must be tensors written by torch.save or safetensors"),
    ],
)
def test_damaged_files(tmp_path, content, text):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        cx.track(net(), tmp_path / "a.pt", "half_mse", (X, Y))


def test_what_is_no_checkpoint(tmp_path):
    torch.save(net(), tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"save model\.state_dict\(\) alone"):
        cx.track(net(), tmp_path / "whole.pt", "half_mse", (X, Y))
    with pytest.raises(CheckpointError, match="must hold a state dict of tensors, got list"):
        cx.track(net(), tmp_path / "list.pt", "half_mse", (X, Y))
    with pytest.raises(TypeError, match="checkpoints must be paths or state dicts, got int"):
        cx.track(net(), 3, "half_mse", (X, Y))
    with pytest.raises(CheckpointError, match="must be a file or a folder"):
        cx.track(net(), tmp_path / "none", "half_mse", (X, Y))


def test_it_prints_and_draws(tmp_path):
    found = cx.track(net(), [net(s).state_dict() for s in range(3)], "half_mse", (X, Y), 2)
    assert repr(found).startswith("3 checkpoints, top eigenvalue of the ggn from ")
    assert list(found._table()[0])[:3] == ["checkpoint", "lambda_1", "error_1"]
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "track.pdf")
    assert (tmp_path / "track.pdf").read_bytes().startswith(b"%PDF")


def test_a_checkpoint_of_a_run_that_diverged_is_named_and_results_are_kept():
    states = [net().state_dict(), net(1).state_dict(), net(2).state_dict()]
    states[1]["0.weight"][0, 0] = float("nan")
    text = r"track: checkpoint 1 must be of a run that is finite .*, got catapult_ext\.GGN: .* NaN"
    with pytest.raises(CheckpointError, match=text) as error:
        cx.track(net(), states, "half_mse", (X, Y))
    assert [row["checkpoint"] for row in error.value.found.rows] == ["0"]
