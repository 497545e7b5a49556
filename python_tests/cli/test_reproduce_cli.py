from __future__ import annotations

import json

import pytest
from cli.command_line import run

SMALL = ("--scale", "smoke", "--set", "activations=relu,tanh", "--set", "seeds=1")


def test_without_a_name_the_experiments_are_listed(capsys):
    code, out, _ = run(capsys, "reproduce")
    assert code == 0
    assert "fc-phases" in out
    assert "sgd-catapults" in out


def test_reproduce_prints_claims_and_writes_the_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "reproduce", "c-act-table", *SMALL)
    assert code == 0, err
    assert "claims hold" in out
    assert "tanh_3" in err
    folder = tmp_path / "catapult-runs" / "c-act-table-smoke"
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["activations"] == ["relu", "tanh"]
    assert config["seeds"] == 1
    told = "catapult-ext reproduce c-act-table --scale smoke --set activations=relu,tanh"
    assert json.loads((folder / "claims.json").read_text())["command"] == f"{told} --set seeds=1"
    assert f"<code>{told} --set seeds=1</code>" in (folder / "report.html").read_text()
    code, out, err = run(capsys, "compare", folder, folder)
    assert code == 0, err
    assert "c_act relu" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fig-1",), "name must be one of paper-fc"),
        (("c-act-table", "--set", "seeds"), "--set must be key=value, got 'seeds'"),
        (
            ("c-act-table", "--set", "activations=3"),
            "--set activations must be words with commas, got '3'",
        ),
        (("fc-phases", "--set", "c=abc"), "--set c must be numbers with commas, got 'abc'"),
        (("c-act-table", "--set", "seeds=many"), "--set seeds must be of type int, got 'many'"),
        (("c-act-table", "--set", "sedes=3", "--scale", "smoke"), "settings of c-act-table are"),
        (("fc-phases", "--set", "seeds=None"), "seeds of fc-phases must be an int >= 1, got None"),
        (("fc-phases", "--set", "c=1e400"), "c of fc-phases must be one or more finite numbers"),
        (("fc-phases", "--set", "batch=abc"), "batch of fc-phases must be an int >= 1 or None"),
        (
            ("c-act-table", "--scale", "tiny"),
            "scale of c-act-table must be one of smoke, cpu, real, full, got 'tiny'",
        ),
        (
            ("warmup", "--scale", "real"),
            "scale of warmup must be one of smoke, cpu, full, got 'real'",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, tmp_path, arguments, message):
    code, _, err = run(capsys, "reproduce", *arguments, "--out", tmp_path / "run")
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_missing_data_folder_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("CATAPULT_DATA", raising=False)
    monkeypatch.setattr("catapult_ext.data.standard.packaged", lambda name: None)
    code, _, err = run(capsys, "reproduce", "fc-phases", "--scale", "full", "--out", tmp_path / "r")
    assert code == 1
    assert "pass data_dir or set CATAPULT_DATA" in err


def test_a_device_that_is_not_there_is_told_before_a_folder_is_made(capsys, tmp_path):
    for device in ("cuda:99", "quantum"):
        out = tmp_path / "run"
        code, _, err = run(
            capsys, "reproduce", "c-act-table", *SMALL, "--out", out, "--device", device
        )
        assert code == 1
        assert "device must be one that torch can use here (" in err
        assert f"got '{device}'" in err
        assert not out.exists()


def test_a_command_that_failed_before_its_first_part_can_be_corrected(capsys, tmp_path):
    wrong = ("--set", "train=100000", "--set", "seeds=1", "--set", "c=1", "--set", "steps=2")
    arguments = ("reproduce", "fc-phases", "--scale", "smoke", "--out", tmp_path / "run")
    code, _, err = run(capsys, *arguments, *wrong)
    assert code == 1
    assert "train must be in" in err
    code, _, err = run(capsys, *arguments, *wrong[2:])
    assert code == 0, err
