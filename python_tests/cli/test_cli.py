from __future__ import annotations

import importlib
import importlib.metadata
import json
import shlex
import subprocess
import sys

import pytest
from cli.command_line import run

import catapult_ext as cx
from catapult_ext import build_info
from catapult_ext.cli import console
from catapult_ext.cli.info import OPTIONAL

SMALL = ["--samples", "24", "--width", "12", "--depth", "1", "--steps", "4"]


def test_help_names_the_commands(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in ("demo", "toy", "sweep", "info"):
        assert name in out
    assert run(capsys, "no-such-command")[0] == 2


def test_info_shows_what_the_binary_can_do(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert "active_isa" in out
    assert build_info()["active_isa"] in out
    assert build_info()["torch"] in out


def test_info_as_json_says_what_is_missing(capsys, monkeypatch):
    real = importlib.metadata.version

    def version(package):
        if package == "matplotlib":
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr("importlib.metadata.version", version)
    code, out, _ = run(capsys, "info", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["matplotlib"] == "not installed"
    assert "matplotlib, for pictures" in facts["missing"]
    for name in OPTIONAL:
        named = any(line.startswith(f"{name}, for ") for line in facts["missing"])
        assert named == (facts[name] == "not installed"), name
    for name in ("processor", "active_isa", "threads", "torch", "cuda", "cuda_devices"):
        assert name in facts
    assert facts["processor"]


def test_version_and_short_help(capsys):
    assert run(capsys, "--version")[:2] == (0, f"catapult_ext {cx.__version__}\n")
    assert run(capsys, "-h")[1] == run(capsys, "--help")[1]
    assert run(capsys, "probe", "-h")[1] == run(capsys, "probe", "--help")[1]


def test_a_command_that_is_not_there_names_the_nearest(capsys):
    code, _, err = run(capsys, "prob")
    assert code == 2
    assert "Did you mean 'probe'?" in err


def test_commands_are_functions_that_can_be_called(capsys, tmp_path):
    from catapult_ext.cli import toy

    toy.toy(c="0.5,2.5,9", steps=20, samples=4, out=tmp_path / "called")
    called = capsys.readouterr().out
    options = ["--c", "0.5,2.5,9", "--steps", "20", "--samples", "4", "--out", tmp_path / "typed"]
    code, typed, err = run(capsys, "toy", *options)
    assert code == 0, err
    assert typed == called.replace("called", "typed")
    tables = [(tmp_path / name / "summary.csv").read_bytes() for name in ("called", "typed")]
    assert tables[0] == tables[1]


def test_the_group_runs_its_own_command_only_without_a_subcommand(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "toy", "figure", "plane", "--out", tmp_path / "plane.png")
    assert code == 0, err
    assert out == f"Picture: {tmp_path / 'plane.png'}\n"
    assert not (tmp_path / "catapult-runs").exists()


def test_python_m_is_the_same_command():
    command = [sys.executable, "-m", "catapult_ext", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "catapult-ext" in result.stdout


def test_sweep_prints_the_table_and_writes_the_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "sweep", "--c", "0.5,2.5", "--name", "mine", *SMALL)
    assert code == 0, err
    assert "lazy" in out
    assert "catapult" in out
    assert "eta_crit" in out
    folder = tmp_path / "catapult-runs" / "mine"
    assert str(folder.relative_to(tmp_path) / "report.html") in out
    assert [row["c"] for row in json.loads((folder / "summary.json").read_text())["rates"]] == [
        0.5,
        2.5,
    ]


def test_sweep_of_several_seeds(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "run"
    given = ["sweep", "--c", "0.5,2.5", "--seed", "3", "--out", folder, *SMALL]
    code, out, err = run(capsys, *given, "--seeds", "2")
    assert code == 0, err
    assert "seeds 3 to 4" in out
    assert "lazy 2" in out
    assert "catapult 2" in out
    assert "Over 2 seeds" in out
    assert "4/4" in err
    assert all(len(line) <= 80 for line in out[: out.index("Report:")].splitlines())
    rows = json.loads((folder / "summary.json").read_text())["rates"]
    assert [(row["seed"], row["c"]) for row in rows] == [(3, 0.5), (3, 2.5), (4, 0.5), (4, 2.5)]
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {"fig_seeds.png", "fig_seed_0003.png", "fig_seed_0004.png"}
    assert run(capsys, "table", folder, tmp_path / "steps.csv")[0] == 0
    lines = (tmp_path / "steps.csv").read_text().splitlines()
    at = lines[0].split(",").index("seed")
    assert {line.split(",")[at] for line in lines[1:]} == {"3", "4"}
    # each network is that of its own seed, on the same data
    alone = ["sweep", "--c", "0.5,2.5", "--seed", "4", "--out", tmp_path / "alone", *SMALL]
    assert run(capsys, *alone)[0] == 0
    own = json.loads((tmp_path / "alone" / "summary.json").read_text())["rates"]
    for one, other in zip(rows[2:], own, strict=True):
        assert one["loss_end"] == pytest.approx(other["loss_end"], rel=1e-4)


def test_sweep_of_several_seeds_resumes(capsys, tmp_path, monkeypatch):
    module = importlib.import_module("catapult_ext.experiments.sweep")
    monkeypatch.setattr(module, "seed_figures", lambda *_: ({}, {}))  # drawing takes the longest
    folder = tmp_path / "run"
    given = ["sweep", "--c", "0.5,2.5", "--out", folder, *SMALL]
    assert run(capsys, *given, "--seeds", "2")[0] == 0
    table = (folder / "summary.csv").read_bytes()
    lost = folder / "parts" / "seed_0001_rate_0000.json"
    held = lost.read_bytes()
    lost.unlink()
    code, _, err = run(capsys, *given, "--seeds", "2")
    assert code == 0, err
    assert "3 of 4 learning rates are done already" in err
    assert lost.read_bytes() == held
    assert (folder / "summary.csv").read_bytes() == table
    code, _, err = run(capsys, *given, "--seeds", "3")  # another run
    assert code == 1
    assert "--fresh" in err


def test_toy_bifurcation_leaves_picture_and_array(capsys, tmp_path):
    out = tmp_path / "run"
    code, text, _ = run(
        capsys, "toy", "bifurcation", "--resolution", "40", "--burn-in", "100", "--out", out
    )
    assert code == 0
    assert str(out / "bifurcation.npz") in text
    assert (out / "bifurcation.npz").exists()
    assert (out / "fig_bifurcation.png").read_bytes().startswith(b"\x89PNG")


def test_toy_noise_leaves_picture_and_arrays(capsys, tmp_path):
    out = tmp_path / "run"
    given = ["--resolution", "3", "--beta-high", "0.5", "--tolerance", "0.2", "--paths", "8"]
    code, text, err = run(capsys, "toy", "noise", *given, "--out", out)
    assert code == 0, err
    assert "times the mean-square edge; bars up to" in text
    assert str(out / "plane.npz") in text
    assert (out / "fig_noise.png").read_bytes().startswith(b"\x89PNG")


def test_toy_shows_the_phases(capsys, tmp_path):
    code, out, err = run(capsys, "toy", "--c", "1.5,2.6,3.3,4.5", "--out", tmp_path / "toy")
    assert code == 0, err
    said = " ".join(out.split())
    assert "The largest stable c is 3.3, the first divergent one 4.5" in said
    assert "eta*lambda ends at or below 2" in said
    assert (tmp_path / "toy" / "fig_toy.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "toy" / "summary.json").read_text())["rates"]
    assert [r["phase"] for r in rows] == ["lazy", "catapult", "catapult", "divergent"]
    # At c = 2.6 and large width lambda ends in a band that does not depend on the data: theory 2.2.
    assert 0.7 < rows[1]["eta_lambda_end"] < 1.3


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "cnn", "--data", "digits", "--width", "2"],
        ["--data", "teacher", "--loss", "half_mse_mean", "--parameterisation", "standard"],
        ["--loss", "cross_entropy"],
        [*("--model", "gpt", "--data", "sums", "--loss", "cross_entropy"), "--width", "4"],
        [*("--model", "vit", "--data", "digits28", "--loss", "cross_entropy"), "--width", "4"],
    ],
)
def test_sweep_of_other_nets_and_data(capsys, tmp_path, arguments):
    options = ["--eta", "0.01", "--out", tmp_path / "run", *SMALL, *arguments]
    code, out, err = run(capsys, "sweep", *options)
    assert code == 0, err
    assert "lazy" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eta", "0"], "error: catapult_ext.sweep: eta must be finite and > 0, got 0.0"),
        (["--eta", "0.1,x"], "--eta must be numbers separated by commas, got '0.1,x'"),
        ([], "give either c or eta"),
        (["--c", "1", "--model", "cnn", "--data", "teacher"], "--model cnn needs images"),
        (["--c", "1", "--model", "vit", "--data", "teacher"], "--model vit needs images"),
        (["--c", "1", "--model", "gpt"], "--model gpt and data of characters, such as --data sums"),
        (["--c", "1", "--data", "sums"], "--model gpt and data of characters, such as --data sums"),
        (["--c", ","], "catapult_ext.sweep: --c must be numbers separated by commas, got ','"),
        (["--c", "1", "--data", "teacher", "--seed", "-1"], "seed must be from 0 to 2^32 - 1, got"),
        (["--c", "1", "--data", "teacher", "--loss", "bce"], "targets must be in [0, 1], got"),
        (["--c", "1", "--seeds", "0"], "catapult_ext.sweep: --seeds must be 1 to 1000, got 0"),
        (["--c", "1", "--seeds", "1001"], "--seeds must be 1 to 1000, got 1001"),
        (["--c", "1", "--samples", "5000"], "train must be in 1..1796, got 5000"),
        (["--c", "1", "--activation", "sine"], "name must be one of linear"),
        (["--c", "1", "--loss", "mae"], "loss must be one of half_mse, "),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(capsys, tmp_path, arguments, message):
    code, out, err = run(capsys, "sweep", "--out", tmp_path / "run", *arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--c", "abc"], "catapult_ext.toy: --c must be numbers separated by commas, got 'abc'"),
        (["--c", ","], "catapult_ext.toy: --c must be numbers separated by commas, got ','"),
        (["--width", "inf"], "width must be a whole number from 1 to 1e15, got inf"),
        (["--width", "nan"], "width must be a whole number from 1 to 1e15, got nan"),
        (["--width", "2.7"], "width must be a whole number from 1 to 1e15, got 2.7"),
        (["--seed", "-1"], "catapult_ext.toy: seed must be from 0 to 2^32 - 1, got -1"),
        (["bifurcation", "--resolution", "-3"], "--resolution must be >= 1, got -3"),
        (["noise", "--beta-high", "1"], "beta must be in [0, 1) and finite, got 1"),
        (["noise", "--low", "-1"], "variance must start above 0, got -1"),
        (["bifurcation", "--low", "nan"], "b must be positive and finite, got nan"),
        (["bifurcation", "--burn-in", "-3"], "burn_in must be >= 0, got -3"),
        (["diagram", "--width", "nan"], "width must be positive and finite, got nan"),
        (["diagram", "--b", "nan"], "label must be finite, got nan"),
        (["diagram", "--c-high", "inf"], "low < high, both finite, got (0.02, inf)"),
        (["figure", "none"], "name must be one of plane, phases, curvature"),
        (["figure", "plane"], "--out must be a PNG file"),
    ],
)
def test_bad_toy_arguments_are_one_line_and_leave_nothing(capsys, tmp_path, arguments, message):
    code, out, err = run(capsys, "toy", *arguments, "--out", tmp_path / "new" / "run")
    assert code == 1
    assert message in err
    assert out == ""
    assert err.strip().startswith("error: catapult_ext.")
    assert len(err.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_picture_needs_a_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "toy", "figure", "plane", "--out", tmp_path / "file" / "a.png")
    assert code == 1
    assert "--out must lie in a folder that can be made" in err
    code, _, err = run(capsys, "toy", "figure", "plane", "--out", tmp_path / "new" / "a.png")
    assert code == 0, err
    assert (tmp_path / "new" / "a.png").exists()


def test_foreign_folder_is_refused_untouched(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("my only copy")
    code, _, err = run(capsys, "demo", "--out", tmp_path, "--width", "8", "--steps", "1")
    assert code == 1
    assert "is not a run folder" in err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("command", "work", "arguments"),
    [
        (["demo"], "cli.demo.run_demo", ["--seed", "3"]),
        (["sweep"], "cli.sweep.run", ["--c", "1", *SMALL]),
        (["sweep"], "cli.sweep.run_seeds", ["--c", "1", "--seeds", "2", *SMALL]),
        (["toy", "diagram"], "toy.phase_diagram", ["--axis", "b"]),
        (["toy", "bifurcation"], "toy.bifurcation", ["--keep", "300"]),
        (["toy", "noise"], "toy.noise_plane", ["--seed", "3"]),
        (["reproduce", "c-act-table"], "cli.reproduce.experiments.reproduce", ["--set", "seeds=1"]),
    ],
)
def test_interrupt_says_how_to_go_on(capsys, tmp_path, monkeypatch, command, work, arguments):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"catapult_ext.{work}", interrupted)
    out = tmp_path / ("a folder [bold]" + 80 * "x")
    given = [*command, "--fresh", "--out", str(out), *arguments]
    monkeypatch.setattr(sys, "argv", ["catapult-ext", *given])
    code, _, err = run(capsys, *given)
    assert code == 130
    given.remove("--fresh")
    assert shlex.split(err.splitlines()[-1]) == ["catapult-ext", *given]


def test_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    code, _, err = run(capsys, "info")
    assert code == 1
    assert "error: catapult-ext needs typer" in err
    assert "pip install 'catapult_ext[experiments]'" in err


def test_bugs_keep_their_traceback():
    with pytest.raises(ValueError, match="oops"), console.report_errors():
        raise ValueError("oops")
