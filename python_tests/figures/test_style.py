"""What all pictures share: one palette, one message without matplotlib, no global state."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch

import catapult_ext as cx
from catapult_ext.figures import curvature, line_panel, phase_diagrams, style, sweep
from catapult_ext.toy import gallery

FIGURES = Path(style.__file__).parent
PROBES = [{"step": 0, "values": [2.0], "errors": [0.1], "eta": 0.5}]
PANEL = line_panel.Panel("t", "x", "y", [line_panel.Series("a", [1.0, 2.0], [1.0, 3.0])])


def diagram():
    return cx.toy.phase_diagram("b", resolution=4, steps=3)


def noise_plane():
    return cx.toy.noise_plane(beta=[0.5], variance=[0.0, 1.0], tolerance=0.5, paths=8)


def orbits():
    b = torch.linspace(0.9, 1.5, 5, dtype=torch.float64)
    return cx.toy.bifurcation(b, burn_in=4, keep=4)


DRAWERS = {
    "sweep": lambda path: sweep.sweep_figures({}, []),
    "curvature": lambda path: curvature.curvature_png(PROBES, [], "ntk"),
    "line panel": lambda path: line_panel.draw_panel(PANEL),
    "phase diagram": lambda path: diagram().plot(path),
    "noise plane": lambda path: noise_plane().plot(path),
    "bifurcation": lambda path: orbits().plot(path),
    "gallery": lambda path: gallery.draw("plane", path),
}


@pytest.mark.parametrize("name", DRAWERS)
def test_missing_matplotlib_is_one_message(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeError) as seen:
        DRAWERS[name](tmp_path / "a.png")
    assert str(seen.value) == (
        "catapult_ext.figures: pictures need matplotlib, which the extra 'experiments' brings: "
        "pip install 'catapult_ext[experiments]'"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pictures need matplotlib"):
        style.require_matplotlib()


@pytest.mark.parametrize("name", [n for n in DRAWERS if n != "sweep"])
def test_drawing_leaves_the_backend_and_the_settings_alone(name, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    pyplot = "matplotlib.pyplot" in sys.modules
    DRAWERS[name](tmp_path / "new" / "a.png")
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def test_colours_are_named_in_one_place():
    for path in sorted(FIGURES.parent.rglob("*.py")):
        if path == FIGURES / "style.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.fullmatch("#[0-9A-Fa-f]{6}", node.value), (path, node.value)


@pytest.mark.parametrize("look", ["o-", "-", "o:", "x:"])
def test_lines_can_be_told_apart_without_colour(look):
    pytest.importorskip("matplotlib")
    lines = [line_panel.Series(str(i), [1.0, 2.0], [1.0, i], style=look) for i in range(7)]
    ax = style.new_figure(3, 3).add_subplot()
    line_panel._fill(ax, line_panel.Panel("t", "x", "y", lines))
    drawn = [c.lines[0] for c in ax.containers]
    looks = {(d.get_marker(), str(d._dash_pattern)) for d in drawn}
    assert len(looks) == (1 if look == "x:" else 7)  # an explicit style is left alone


def test_toy_pictures_use_the_palette():
    okabe_ito = {style.BLUE, style.ORANGE, style.GREEN, style.RED, style.BLACK}
    assert {*gallery.COLOURS, *phase_diagrams.PHASE_COLOURS[:2]} <= okabe_ito
