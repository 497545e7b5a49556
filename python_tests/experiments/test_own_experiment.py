"""An experiment of one's own: run, resumed and reported as the paper's, and its errors named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from catapult_ext import cli
from catapult_ext.experiments import reproduce as rp

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SPEC = "vit_catapult:experiment"
SMALL = {"data": "digits", "train": 24, "c": (1.0, 1e6), "steps": 4}


@pytest.fixture(autouse=True)
def importable(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["reproduce", *map(str, arguments)])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_the_worked_example_is_short():
    lines = (EXAMPLES / "vit_catapult.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


def test_the_worked_example_runs_resumes_and_reports(capsys, tmp_path):
    rates = ("--set", "c=1.0,1e6", "--set", "train=24", "--set", "steps=4", "--data", "digits")
    code, out, err = run(capsys, SPEC, *rates, "--workers", 1)
    assert code == 0, err
    assert "a small ViT" in out
    folder = tmp_path / "catapult-runs" / "vit_catapult.experiment-cpu"
    claims = json.loads((folder / "claims.json").read_text())
    assert claims["command"].startswith(f"catapult-ext reproduce {SPEC} --data digits")
    (claim,) = claims["claims"]
    assert claim["on"] == "digits, 24 samples, cross_entropy, 2 seeds"
    assert "1 to 1e+06, 1 to 1e+06" in claim["measured"]
    assert (folder / "fig_curvature.pdf").exists()
    table = (folder / "table_rates.csv").read_bytes()
    (folder / "parts" / "vit_s1_c1.json").unlink()
    lines = []
    rp.reproduce(SPEC, out=folder, tell=lines.append, **SMALL)
    assert [line.split()[0] for line in lines] == ["vit_s1_c1"]
    assert (folder / "table_rates.csv").read_bytes() == table  # torch's generator has the seed
    before = torch.get_rng_state()
    rp.reproduce(SPEC, **SMALL | {"c": (1.0,), "steps": 1})
    assert torch.equal(torch.get_rng_state(), before)


def write(folder, name, text):
    (folder / f"{name}.py").write_text(text)


HEAD = """
from dataclasses import dataclass
from catapult_ext.experiments import reproduce as rp
@dataclass(frozen=True)
class Settings:
    data: str = "digits"
"""


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("own_a", "import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("own_b", "x = 1 / 0", "ZeroDivisionError: division by zero (own_b.py, line 7)"),
        ("own_c", "def f(:", "SyntaxError: "),
        ("own_d", "experiment = 3", "own_d:experiment must be a reproduce.Experiment, got int"),
        (
            "own_e",
            "def run(s, context):\n    return missing\n"
            "experiment = rp.Experiment('e', 't', 's', Settings(), run)",
            "experiment own_e:experiment must run, got NameError: name 'missing' is not defined "
            "(own_e.py, line 8)",
        ),
        (
            "own_f",
            "experiment = rp.Experiment('e', 't', 's', Settings(), lambda s, context: 3)",
            "experiment own_f:experiment must return an Outcome, got int",
        ),
        (
            "own_g",
            "experiment = rp.Experiment('e', 't', 's', 3, print)",
            "settings of own_g:experiment must be dataclasses, one or by scale, got int",
        ),
        ("own_h", "", "module own_h must have a function experiment"),
    ],
)
def test_an_error_in_a_module_of_yours_is_one_line(capsys, tmp_path, name, body, message):
    write(tmp_path, name, HEAD + body + "\n")
    code, _, err = run(capsys, f"{name}:experiment", "--workers", 1)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    told = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert name in told[0]


def test_unknown_settings_and_scales_of_yours(capsys, tmp_path):
    code, _, err = run(capsys, SPEC, "--set", "sedes=3", "--workers", 1)
    assert code == 1
    assert f"settings of {SPEC} are data, train" in err
    code, _, err = run(capsys, "no_such_module:experiment")
    assert code == 1
    assert "name must name a module that can be imported" in err
