import numpy as np
import pytest
import torch

import catapult_ext as cx
from catapult_ext import toy
from catapult_ext._store import RunFolderError
from catapult_ext.toy import phase_diagram as make
from catapult_ext.toy.maps import run_scalar

AXES = ("width", "f0", "b", "momentum")


@pytest.mark.parametrize("axis", AXES)
def test_rows_are_runs_of_the_map(axis):
    diagram = make(axis, resolution=(23, 7), steps=120)
    assert diagram.phase.shape == (7, 23)
    for i in (0, 3, 6):
        value = float(diagram.values[i])
        setting = {"width": 1e6, "f0": 1.0, "b": 0.0, "momentum": 0.0} | {axis: value}
        c = torch.from_numpy(diagram.c)
        width, f0 = setting["width"], min(setting["f0"], setting["width"] ** 0.5)
        label = setting["b"] * width**0.5 / (c / 2)
        runs = run_scalar(
            c, steps=120, width=width, f0=f0, label=label, momentum=setting["momentum"]
        )
        np.testing.assert_array_equal(diagram.diverged_at[i], runs.diverged_at)
        np.testing.assert_allclose(diagram.eta_lambda[i], runs.eta_lambda, rtol=1e-8)
        np.testing.assert_allclose(diagram.peak_loss[i], runs.peak_loss, rtol=1e-6)


def test_both_boundaries():
    diagram = make("f0", c=(1.0, 5.0), resolution=(401, 40), steps=1000)
    lazy, catapult, divergent = (
        (diagram.phase == toy.PHASE_NAMES.index(name)).any(0)
        for name in ("lazy", "catapult", "divergent")
    )
    c = diagram.c
    assert (lazy == (c < 2 - 1e-9)).all()
    assert (divergent[c > 4.02]).all()
    assert not divergent[c < 4 - 1e-9].any()
    assert catapult[(c > 2.02) & (c < 3.9)].all()
    # The loss exceeds its start only beyond c = 2.
    start = diagram.values[:, None] ** 2 / 2
    inner = diagram.values < 30
    assert (diagram.peak_loss[inner][:, c < 2] <= start[inner] * (1 + 1e-9)).all()
    assert (diagram.peak_loss[inner][:, (c > 2.05) & (c < 4)] > 2 * start[inner]).all()


def test_momentum_plane_shifts_the_onset():
    diagram = make(
        "momentum",
        c=(1.0, 4.5),
        values=np.array([0.0, 0.25, 0.5]),
        resolution=200,
        steps=2000,
        width=1e9,
    )
    for row, beta in enumerate(diagram.values):
        quiet = diagram.c < 2 * (1 + beta) - 0.1
        assert (diagram.peak_loss[row][quiet] < 10).all()
        assert (diagram.phase[row][quiet] == 0).all()


def test_memory_is_the_same_in_chunks(monkeypatch, tmp_path):
    import sys

    module = sys.modules["catapult_ext.toy.phase_diagram"]
    whole = make("width", resolution=(30, 21), steps=50)
    monkeypatch.setattr(module, "LANES", 100)
    seen = []
    pieces = make(
        "width", resolution=(30, 21), steps=50, progress=lambda n, of: seen.append((n, of))
    )
    assert seen == [(n, 21) for n in range(3, 22, 3)]
    for name in module.FIELDS:
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))


def test_resumes_where_it_stopped(monkeypatch, tmp_path):
    import sys

    module = sys.modules["catapult_ext.toy.phase_diagram"]
    monkeypatch.setattr(module, "LANES", 60)
    options = {"resolution": (20, 12), "steps": 40}
    expected = make("b", **options)

    def stop(done, rows):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("b", **options, out=tmp_path / "run", progress=stop)
    assert not (tmp_path / "run" / "diagram.npz").exists()
    calls = []
    original = module._run_rows
    monkeypatch.setattr(module, "_run_rows", lambda *a: calls.append(1) or original(*a))
    again = make("b", **options, out=tmp_path / "run")
    assert len(calls) == 2  # six of the twelve rows were there
    for name in module.FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(expected, name))
    with np.load(tmp_path / "run" / "diagram.npz") as saved:
        np.testing.assert_array_equal(saved["phase"], expected.phase)
        np.testing.assert_array_equal(saved["c"], expected.c)
        assert str(saved["axis"]) == "b"
        assert saved["setting_steps"] == 40
    calls.clear()
    make("b", **options, out=tmp_path / "run")
    assert not calls
    with pytest.raises(RunFolderError, match="another configuration"):
        make("b", resolution=(20, 12), steps=41, out=tmp_path / "run")
    make("b", resolution=(20, 13), steps=41, out=tmp_path / "run", fresh=True)


@pytest.mark.parametrize("damage", ["missing", "short", "shape", "dtype", "values", "garbage"])
def test_rows_that_were_lost_are_computed_anew(monkeypatch, tmp_path, damage):
    import sys

    module = sys.modules["catapult_ext.toy.phase_diagram"]
    monkeypatch.setattr(module, "LANES", 60)
    options = {"resolution": (20, 12), "steps": 40, "out": tmp_path}
    expected = np.array(make("b", **options).peak_loss)
    path = tmp_path / "peak_loss.npy"
    held, whole = np.load(path), path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbage":
        path.write_bytes(b"{" * 300)
    elif damage == "values":
        held[7] = 0
        np.save(path, held)
    else:
        np.save(path, held[:5] if damage == "shape" else held.astype(np.float32))
    calls = []
    original = module._run_rows
    monkeypatch.setattr(module, "_run_rows", lambda *a: calls.append(1) or original(*a))
    np.testing.assert_array_equal(make("b", **options).peak_loss, expected)
    assert len(calls) == (1 if damage == "values" else 4)
    np.testing.assert_array_equal(np.load(path), expected)


def test_bifurcation_resumes_where_it_stopped(monkeypatch, tmp_path):
    import sys

    module = sys.modules["catapult_ext.toy.bifurcation"]
    monkeypatch.setattr(module, "CHUNK", 5 * 16)  # five labels at a time
    b = torch.linspace(0.9, 2.2, 23, dtype=torch.float64)
    options = {"burn_in": 50, "keep": 16}
    expected = cx.toy.bifurcation(b, **options)
    assert 0 < int((expected.diverged_at >= 0).sum()) < 23

    def stop(done, labels):
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cx.toy.bifurcation(b, **options, out=tmp_path / "run", progress=stop)
    assert not (tmp_path / "run" / "bifurcation.npz").exists()
    seen = []
    again = cx.toy.bifurcation(
        b, **options, out=tmp_path / "run", progress=lambda n, of: seen.append((n, of))
    )
    assert seen == [(n, 23) for n in (5, 10, 15, 20, 23)]
    with np.load(tmp_path / "run" / "bifurcation.npz") as saved:
        for name in ("b", "a", "eta_lambda", "diverged_at"):
            np.testing.assert_array_equal(getattr(again, name), getattr(expected, name))
            np.testing.assert_array_equal(saved[name], getattr(expected, name))
    with pytest.raises(RunFolderError, match="another configuration"):
        cx.toy.bifurcation(b, burn_in=51, keep=16, out=tmp_path / "run")


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    for axis in AXES:
        path = make(axis, resolution=(40, 30), steps=60).plot(tmp_path / f"{axis}.png")
        assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"axis": "depth"}, ValueError, "axis must be one of width, f0, b, momentum, got 'depth'"),
        ({"c": (3.0, 1.0)}, ValueError, r"c must be \(low, high\) with low < high"),
        ({"axis": "width", "values": (0.0, 1.0)}, ValueError, "width must start above 0"),
        ({"resolution": 1}, ValueError, "resolution must be at least 2"),
        ({"steps": 1.5}, ValueError, "steps must be an int >= 0, got 1.5"),
        ({"dtype": torch.int64}, TypeError, "dtype must be torch.float32 or torch.float64"),
        ({"axis": "momentum", "values": (0.0, 1.5)}, ValueError, r"momentum must be in \[0, 1\)"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        make(**({"resolution": 5, "steps": 5} | options))
