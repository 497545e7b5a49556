"""Threads of the commands, tables at 80 columns, and names that were nearly right."""

import pytest
import torch
from cli.command_line import run

from catapult_ext.cli import console, demo
from catapult_ext.experiments import reproduce as rp


@pytest.fixture
def two_threads(monkeypatch):
    """A process that torch lets compute on two threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


SMALL = ["--c", "0.5,1.5", "--samples", "8", "--width", "8", "--depth", "1", "--steps", "2"]


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [((), None, 1), (("--threads", 3), None, 3), ((), "2", 2)],
)
def test_sweeps_choose_one_thread_and_say_so(
    capsys, tmp_path, monkeypatch, two_threads, given, environment, expected
):
    """Point 15."""
    from catapult_ext.cli import sweep

    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    seen = []
    monkeypatch.setattr(sweep, "run", lambda *a, **k: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(sweep, "print_result", lambda *a: None)
    code, _, err = run(capsys, "sweep", *SMALL, "--out", tmp_path / "run", *given)
    assert code == 0, err
    assert seen == [expected]
    assert f"on {expected} thread" in err
    assert torch.get_num_threads() == 2


def test_the_demo_does_as_sweeps_do(capsys, monkeypatch, two_threads):
    """Point 15."""
    seen = []
    monkeypatch.setattr(demo, "run_demo", lambda *a, **k: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(demo, "print_result", lambda *a: None)
    assert run(capsys, "demo")[0] == 0
    assert seen == [1]


def test_threads_are_at_least_one(capsys, tmp_path):
    code, _, err = run(capsys, "sweep", *SMALL, "--out", tmp_path / "run", "--threads", 0)
    assert code == 1
    assert "--threads must be >= 1, got 0" in err


def test_the_list_of_experiments_breaks_no_name_at_80_columns(capsys, monkeypatch):
    """Point 26."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "reproduce")
    assert code == 0
    words = out.split()
    assert all(name in words for name in rp.names())
    assert all(len(line) <= 80 for line in out.splitlines())


def test_the_table_of_a_sweep_fits_80_columns(capsys, tmp_path, monkeypatch):
    """Point 25."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, "sweep", *SMALL, "--out", tmp_path / "run")
    assert code == 0, err
    table = out[: out.index("Report:")]
    assert all(len(line) <= 80 for line in table.splitlines())
    rows = [line.split()[0] for line in table.splitlines() if " lazy  " in line]
    assert rows == ["0.5", "1.5"]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("reproduce", "fc-phase"), "(did you mean 'fc-phases'?)"),
        (("sweep", *SMALL, "--loss", "hlf_mse"), "(did you mean 'half_mse'?)"),
        (("sweep", *SMALL, "--activation", "rellu"), "(did you mean 'relu'?)"),
        (("sweep", *SMALL, "--data", "digit"), "(did you mean 'digits'?)"),
    ],
)
def test_names_that_are_nearly_right(capsys, arguments, meant):
    """Point 26."""
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert meant in err
    assert "Traceback" not in err


def test_threads_return_when_the_block_ends_badly(two_threads):
    def fail():
        with console.on_threads(1, talks=False):
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == 2
