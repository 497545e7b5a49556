"""The long table of a run: a row for each seed, rate and step."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import math

import pytest

import catapult_ext as cx
from catapult_ext import cli, data, models
from catapult_ext.experiments import reproduce as rp
from catapult_ext.runs import steps_table, write_table


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Drawing takes longer than all else here."""
    sweep = importlib.import_module("catapult_ext.experiments.sweep")
    report = importlib.import_module("catapult_ext.experiments.reproduce.report")
    monkeypatch.setattr(sweep, "sweep_figures", lambda *_: {})
    drawn = {"png": b"p", "svg": b"<svg/>", "pdf": b"d"}
    monkeypatch.setattr(report, "draw_panel", lambda *_: drawn)


def a_sweep(out, **settings):
    found = data.teacher(10, 4, in_features=3, out_features=2, seed=1)
    net = models.fully_connected(3, 2, width=6, depth=1)
    return cx.sweep(net, found, c=(0.5, 1e4), steps=4, out=out, **settings)


def test_every_step_of_a_sweep(tmp_path):
    done = a_sweep(tmp_path / "run")
    rows = steps_table(tmp_path / "run")
    first = [row for row in rows if row["part"] == "rate_0000"]
    assert [row["step"] for row in first] == [0, 1, 2, 3, 4]
    record = done.records[0]
    assert [row["loss"] for row in first] == record["loss"]
    assert [row["growth"] for row in first] == record["growth"]
    assert [row["lambda"] for row in first if row["step"] in record["probe_steps"]] == record[
        "lambda"
    ]
    assert first[3]["lambda"] is None  # not measured there
    assert first[4]["time"] == pytest.approx(4 * done.eta[0])
    assert len({tuple(row) for row in rows}) == 1  # equal keys
    assert {row["c"] for row in rows} == {0.5, 1e4}


def test_seeds_of_several_models(tmp_path):
    found = data.teacher(10, 0, in_features=3, out_features=2, seed=1)
    nets = [models.fully_connected(3, 2, width=6, depth=1, seed=seed) for seed in range(2)]
    cx.sweep(nets, found, c=(0.5, 1.0), steps=1, out=tmp_path / "run")
    rows = steps_table(tmp_path / "run")
    assert {(row["seed"], row["c"]) for row in rows} == {(s, c) for s in (0, 1) for c in (0.5, 1.0)}


def test_every_stored_step_of_an_experiment(tmp_path):
    settings = {"train": 12, "test": 0, "width": 6, "c": (1.0, 3.0), "seeds": 2, "steps": 3}
    rp.reproduce("fc-phases", "smoke", out=tmp_path / "run", **settings)
    rows = [row for row in steps_table(tmp_path / "run") if "equal" not in row["part"]]
    assert {(row["seed"], row["c"]) for row in rows} >= {(s, c) for s in (0, 1) for c in (1.0, 3.0)}
    ends = [row for row in rows if row["mark"] == "end"]
    assert len(ends) >= 4
    assert all(row["lambda"] is not None and row["loss"] is not None for row in ends)


def test_csv_by_the_command(tmp_path, capsys):
    a_sweep(tmp_path / "run", probes=False)
    with pytest.raises(SystemExit) as stop:
        cli.main(["table", str(tmp_path / "run"), str(tmp_path / "steps.csv")])
    assert not stop.value.code
    rows = steps_table(tmp_path / "run")
    assert f"{len(rows)} rows" in capsys.readouterr().out
    with open(tmp_path / "steps.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in read] == [row["loss"] for row in rows]
    assert list(read[0])[:7] == ["part", "seed", "c", "eta", "step", "time", "loss"]


def test_parquet_holds_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"step": 0, "loss": 1.5, "lambda": None}, {"step": 1, "loss": math.inf, "lambda": 2.0}]
    write_table(rows, tmp_path / "a.parquet")
    read = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert read == [rows[0], rows[1] | {"loss": None}]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"path must end in \.csv or \.parquet"):
        write_table([], tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match="folder must be a run folder with parts"):
        steps_table(tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.json").write_text('{"record": {"value": 3}}')
    with pytest.raises(ValueError, match="folder must hold training runs"):
        steps_table(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"needs pyarrow: pip install pyarrow, or choose \.csv"):
        write_table([{"a": 1}], tmp_path / "a.parquet")
    assert not (tmp_path / "a.parquet").exists()
