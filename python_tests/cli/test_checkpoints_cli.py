"""probe, max-lr and track of trained weights: loaded from files, in order, with fixed seeds."""

import json

import pytest
import torch
from cli.command_line import run

import catapult_ext as cx

SOURCE = """
import torch
from torch import nn

def drawn():
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

net = drawn()

def asked(width):
    return drawn()

def broken():
    return {}["absent"]
"""
FEW = ("--samples", "24")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "drawn_net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))


@pytest.fixture
def trained(folder):
    """A folder of four checkpoints of one descent, of names that sort otherwise as text."""
    (folder / "run").mkdir()
    data, model = cx.data.digits(), net()
    x, y = data.x_train[:24], data.y_train[:24]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    states = {}
    for step in range(11):
        if step in (0, 2, 9, 10):
            states[f"step{step}"] = {k: v.clone() for k, v in model.state_dict().items()}
            torch.save(states[f"step{step}"], folder / "run" / f"step{step}.pt")
        optimizer.zero_grad()
        (0.5 * (model(x) - y).square().sum() / len(x)).backward()
        optimizer.step()
    return states


def exact(state, kind="ggn"):
    data, model = cx.data.digits(), net()
    model.load_state_dict(state)
    pair = data.x_train[:24], data.y_train[:24]
    operator = {"ggn": cx.GGN, "hessian": cx.Hessian}[kind](model, "half_mse", pair)
    return cx.eigsh(operator, tol=1e-6).eigenvalues.item()


def test_the_same_command_gives_the_same_numbers(capsys, folder):
    """Point 4: the factory draws its weights from the seed, which is printed."""
    first, again = (run(capsys, "max-lr", "drawn_net:drawn", *FEW)[1] for _ in range(2))
    assert first == again
    assert "seed      0\n" in first
    other = run(capsys, "max-lr", "drawn_net:drawn", *FEW, "--seed", 1)[1]
    assert "seed      1\n" in other
    assert other.splitlines()[1] != first.splitlines()[1]


def test_probe_and_max_lr_of_a_checkpoint(capsys, trained):
    """Point 4: trained weights are loaded into the factory's model."""
    wanted = exact(trained["step9"])
    for command in ("probe", "max-lr"):
        file = ("--checkpoint", "run/step9.pt")
        code, out, err = run(capsys, command, "drawn_net:drawn", *FEW, *file, "--json")
        assert code == 0, err
        (line,) = out.splitlines()
        found = json.loads(line)
        assert found["checkpoint"] == "step9"
        assert found["seed"] == 0
        assert found["window"]["lambda0"] == pytest.approx(wanted, rel=1e-3)


def test_probe_of_a_folder_takes_each_in_turn(capsys, trained):
    code, out, err = run(
        capsys, "probe", "drawn_net:drawn", *FEW, "--checkpoint", "run", "--json", "--k", 1
    )
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["checkpoint"] for line in lines] == list(trained)
    for line in lines:
        rows = {row["quantity"]: row["value"] for row in line["rows"]}
        state = trained[line["checkpoint"]]
        assert rows["GGN"] == pytest.approx(exact(state), rel=2e-3)
        assert rows["Hessian"] == pytest.approx(exact(state, "hessian"), rel=2e-3)


@pytest.mark.parametrize("command", ["probe", "max-lr"])
def test_a_checkpoint_that_is_not_finite_is_named(command, capsys, trained):
    broken = dict(trained["step9"])
    broken["0.weight"] = torch.full_like(broken["0.weight"], float("nan"))
    torch.save(broken, "run/step99.pt")
    code, out, err = run(capsys, command, "drawn_net:drawn", *FEW, "--checkpoint", "run", "--json")
    assert code != 0
    assert len(out.splitlines()) == len(trained)  # those before it are kept
    assert "0.weight of run/step99.pt must be finite" in err


def test_track_follows_a_folder_in_natural_order(capsys, trained, folder):
    out_file = folder / "new" / "track.png"
    code, out, err = run(
        capsys, "track", "drawn_net:drawn", *FEW, "--checkpoint", "run", "--out", out_file
    )
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("step")]
    assert [line.split()[0] for line in lines] == list(trained)
    for line in lines:
        name, value = line.split()[:2]
        assert float(value) == pytest.approx(exact(trained[name]), rel=2e-3)
    assert "(random(0.99)" not in lines[-1]
    assert "inherited" in lines[-1]  # warm-started
    assert all(len(line) <= 80 for line in lines)
    assert out_file.read_bytes()[:4] == b"\x89PNG"


def test_track_keeps_what_came_before_a_checkpoint_of_another_model(capsys, trained, folder):
    wider = torch.nn.Sequential(torch.nn.Linear(64, 9), torch.nn.ReLU(), torch.nn.Linear(9, 10))
    state = dict(wider.state_dict())
    state["head.weight"] = state.pop("2.bias")
    torch.save(state, folder / "run" / "step3.pt")
    options = (*FEW, "--checkpoint", "run", "--json", "--out", "track.png")
    code, out, err = run(capsys, "track", "drawn_net:drawn", *options)
    assert code == 1
    assert [json.loads(line)["checkpoint"] for line in out.splitlines()] == ["step0", "step2"]
    (line,) = err.splitlines()
    assert "run/step3.pt must be a checkpoint of this model" in line
    assert "1 missing (2.bias), 1 unexpected (head.weight)" in line
    assert "of another shape (0.weight (9, 64) for (8, 64)" in line
    assert (folder / "track.png").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--checkpoint", "absent"], "must be a file or a folder of files that end in .pt"),
        (["--checkpoint", "drawn_net.py"], "must be a file or a folder of files that end in"),
        ([], "--checkpoint must name a file or a folder, got None"),
        (["--checkpoint", "run", "--quantity", "fisher"], "quantity must be one of ggn, hessian"),
        (["--checkpoint", "run", "--device", "gpu"], "device must be a torch device"),
    ],
)
def test_refused_in_one_line(capsys, trained, arguments, text):
    code, _, err = run(capsys, "track", "drawn_net:drawn", *FEW, *arguments)
    assert code == 1
    assert text in err
    assert len(err.splitlines()) == 1


def test_a_model_a_file_and_a_fault_of_the_factory(capsys, folder):
    """Point 26: a module that is no factory is taken, FILE.py is found, faults are one line."""
    for spec in ("drawn_net:net", "drawn_net.py:drawn"):
        code, _, err = run(capsys, "max-lr", spec, *FEW, "--trial-steps", 0)
        assert code == 0, err
    for spec, text in (
        ("drawn_net:asked", "drawn_net:asked must be called without arguments, got missing a req"),
        ("drawn_net:broken", "must return without an error, got KeyError: 'absent' (drawn_net.py,"),
        ("drawn_net:draw", "got no such name (did you mean 'drawn'?)"),
    ):
        code, _, err = run(capsys, "max-lr", spec, *FEW)
        assert code == 1
        (line,) = err.splitlines()
        assert text in line


def test_probe_by_layer_prints_every_block_within_80_columns(capsys, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, "probe", "drawn_net:drawn", *FEW, "--by-layer")
    assert code == 0, err
    assert "Blocks of the GGN" in out
    torch.manual_seed(0)
    data = cx.data.digits()
    found = cx.by_layer(net(), "half_mse", (data.x_train[:24], data.y_train[:24]))
    for row in found.rows:
        line = next(x for x in out.splitlines() if x.strip().startswith(f"{row['block']} "))
        assert f"{row['trace']:.4g}" in line
    assert all(len(line) <= 80 for line in out.splitlines())
