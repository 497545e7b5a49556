"""The table of largest working rates: many runs as one program against one after the other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def table():
    """The benchmark's module; the checkout is on the path for it alone."""
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.largest_rates import table
    finally:
        sys.path.remove(str(ROOT))
    return table


@pytest.mark.parametrize(
    ("architecture", "optimizer"),
    [("bn-cnn", "momentum"), ("vit", "Adam"), ("relu-mlp", "Nesterov")],
)
def test_runs_in_one_program_end_as_alone(table, architecture, optimizer):
    """Losses after some steps at three rates, by torch's own optimizer at that rate."""
    data, loss = table.digits("cross_entropy"), table.resolve("cross_entropy")
    models = [table.make(architecture, "ntk", seed) for seed in (0, 0, 1)]
    rates = [0.01, 0.1, 0.03]
    found = table.losses_after(models, rates, optimizer, loss, data, 5)[1]
    for model, rate, end in zip(models, rates, found.tolist(), strict=True):
        alone = table.without_averages(model)
        step = table.OPTIMIZERS[optimizer][0](alone.parameters(), rate)
        for _ in range(5):
            step.zero_grad()
            loss(alone(data[0]), data[1]).backward()
            step.step()
        assert end == pytest.approx(loss(alone(data[0]), data[1]).item(), rel=1e-3)


def test_a_rate_works_if_the_loss_falls_and_no_layer_dies(table):
    data, loss = table.digits("cross_entropy"), table.resolve("cross_entropy")
    models = [table.make("relu-mlp", "default", 0) for _ in range(3)]
    assert table.trained(models, [0.1, 1e6, 1e-3], "SGD", loss, data, 20) == [True, False, True]
    dead = table.make("relu-mlp", "default", 0)
    with torch.no_grad():
        dead[0].bias.fill_(-1e3)  # no unit is active, while the last layer's bias still learns
    assert table.trained([dead], [0.1], "SGD", loss, data, 20) == [False]


def test_the_last_success_before_two_failures(table):
    yes, no = True, False
    assert table.last_working([yes, yes, no, no, yes]) == 1
    assert table.last_working([yes, no, yes, no]) == 2
    assert table.last_working([no, no, no, yes, no]) == 3
    assert table.last_working([no, no]) is None


def test_largest_rates_are_refined(table, monkeypatch):
    """Against a made-up criterion with a known largest rate."""
    limit = {10: 1.5, 11: 0.03, 12: 0.0}

    def trained(models, rates, *_):
        return [rate <= limit[seed] for seed, rate in zip(models, rates, strict=True)]

    monkeypatch.setattr(table, "make", lambda _architecture, _init, seed: seed)
    monkeypatch.setattr(table, "trained", trained)
    found = table.measured("relu-mlp", "half_mse", "default", "SGD")
    assert found == pytest.approx([2**0.5, 2**-5.5, 0.0])


def test_a_table_goes_on_where_it_ended(table, monkeypatch, tmp_path, capsys):
    path = tmp_path / "rates.json"
    cell = "tanh-mlp half_mse default SGD"
    path.write_text(json.dumps({cell: {"largest": [1.0, 2.0, 3.0]}}))
    asked = []
    monkeypatch.setattr(table, "OPTIMIZERS", {"SGD": table.OPTIMIZERS["SGD"]})
    monkeypatch.setattr(table, "measured", lambda *cell: asked.append(cell) or [0.5] * 3)
    window = {"low": 0.5, "high": 2.0, "start": 0.25, "from": "trials", "flags": []}
    monkeypatch.setattr(table, "said", lambda *cell: window)
    for options in (["--window"], [], ["--window"]):
        monkeypatch.setattr(sys, "argv", ["table", "--json", str(path), *options])
        table.main()
    rows = json.loads(path.read_text())
    assert len(rows) == 32
    assert len(asked) == 31
    assert rows[cell] == {"largest": [1.0, 2.0, 3.0], "window": window}
    text = capsys.readouterr().out
    assert "| tanh-mlp | half_mse | default | SGD | 1, 2, 3 | 0.5-2 | 0.25 |" in text
    assert "the first seed's rate in 32 of 32 rows" in text
