"""The pictures of docs/toy.md: each can be drawn, and has the command under it that draws it."""

import re
from pathlib import Path

import pytest

from catapult_ext import cli
from catapult_ext.toy.gallery import FIGURES, describe, draw
from catapult_ext.toy.phase_diagram import AXES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "toy.md"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return stop.value.code or 0, capsys.readouterr()


ALONE = ("bifurcation", "noise")  # commands that draw one picture


def test_every_picture_has_its_command():
    text = PAGE.read_text()
    pictures = re.findall(
        r"!\[[^\]]+\]\((images/toy/[\w-]+\.png)\)\n\n`catapult-ext toy (.+?)`", text
    )
    assert len(pictures) == text.count("![")
    for picture, command in pictures:
        assert (PAGE.parent / picture).read_bytes()[:4] == b"\x89PNG"
        kind, name = command.split()[0], command.split()[-1]
        known = {"figure": FIGURES, "diagram": AXES, **{one: [one] for one in ALONE}}
        assert name in known[kind]
        assert Path(picture).stem == (f"diagram-{name}" if kind == "diagram" else name)
    shown = {command.split()[-1] for _, command in pictures}
    assert shown == {*FIGURES, *AXES, *ALONE}


@pytest.mark.parametrize("name", ["plane", "phases", "regression"])
def test_figures(name, tmp_path):
    pytest.importorskip("matplotlib")
    assert draw(name, tmp_path / "new" / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_names():
    assert [name for name, _ in describe()] == list(FIGURES)
    with pytest.raises(ValueError, match="name must be one of plane"):
        draw("nothing", "a.png")


def test_commands(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("typer")
    monkeypatch.chdir(tmp_path)
    arguments = ("--axis", "momentum", "--resolution", 12, "--steps", 30, "--high", 0.5)
    code, shown = run(capsys, "toy", "diagram", *arguments)
    assert code == 0, shown.err
    folder = tmp_path / "catapult-runs" / "toy-diagram-momentum"
    assert "lazy" in shown.out
    for name in ("diagram.npz", "fig_diagram.png", "config.json", "summary.json"):
        assert (folder / name).exists()
    code, shown = run(capsys, "toy", "diagram", *arguments[:-1], 0.6)
    assert code == 1
    assert "another configuration" in shown.err
    code, shown = run(capsys, "toy", "diagram", "--axis", "depth")
    assert code == 1
    assert "axis must be one of" in shown.err
    code, shown = run(capsys, "toy", "figure", "none")
    assert code == 1
    assert "name must be one of" in shown.err
