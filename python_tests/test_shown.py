"""Results print in a line, show themselves in a notebook, come apart, are saved and loaded."""

from __future__ import annotations

import io
import json
import pkgutil
import sys

import pytest
import torch

import catapult_ext as cx
from catapult_ext._shown import MOST_ROWS, Shown
from catapult_ext.experiments import DemoConfig, run_demo
from catapult_ext.experiments import reproduce as rp
from catapult_ext.linops import Preconditioned
from catapult_ext.probes.rate_trials import Trial

F64 = torch.float64


@pytest.fixture(scope="module")
def data():
    return cx.data.digits(train=24, test=8, dtype=F64)


@pytest.fixture(scope="module")
def model():
    return cx.models.fully_connected(64, 10, width=8, depth=2, seed=0).double()


@pytest.fixture(scope="module")
def tracker(model, data):
    with cx.CurvatureTracker(model, "half_mse", data.train, every=1, k=2) as tracker:
        for _ in range(3):
            tracker.step(torch.tensor(1.0))
    return tracker


@pytest.fixture(scope="module")
def results(model, data, tracker):
    """One of every kind that users are handed."""
    ggn = cx.GGN(model, "half_mse", data.train)
    return {
        "eigsh": cx.eigsh(ggn, k=4),
        "batch": cx.eigsh(torch.stack([torch.eye(60), 2 * torch.eye(60)]), k=2),
        "solve": cx.solve(ggn, torch.ones(len(ggn.diagonal()), 2, dtype=F64), shift=1.0),
        "function": cx.matrix_function(torch.eye(9), torch.sqrt, torch.ones(9)),
        "factor": cx.cholesky(torch.eye(9)),
        "pivoted": cx.pivoted_cholesky(torch.eye(9), 3),
        "left out": cx.leave_one_out(cx.cholesky(torch.eye(9)), torch.ones(9)),
        "trace": cx.hutchinson_trace(ggn, 8),
        "diagonal": cx.hutchinson_diagonal(ggn, 8),
        "density": cx.spectral_density(ggn, 8, 2),
        "window": cx.learning_rate_window(model, "half_mse", data.train),
        "threshold": cx.stability_threshold(torch.optim.SGD(model.parameters(), lr=0.1)),
        "trial": Trial(0.1, 3, 0.5, None),
        "data": data,
        "plane": cx.toy.phase_diagram(resolution=(6, 5), steps=20),
        "noise": cx.toy.noise_plane(resolution=(2, 2), paths=8, max_steps=4096, tolerance=0.5),
        "bifurcation": cx.toy.bifurcation(torch.tensor([0.5, 1.2]), burn_in=50, keep=8),
        "sweep": run_demo(DemoConfig(width=8, samples=8, steps=3, c=(0.5, 3.0))),
        "reproduction": rp.reproduce("fc-phases", "smoke", seeds=1, steps=3, c=(1.0, 3.0)),
        "tracker": tracker,
    }


def test_each_kind_prints_in_a_line(results):
    for name, result in results.items():
        assert isinstance(result, Shown), name
        text = repr(result)
        assert "\n" not in text, name
        assert "tensor(" not in text, name
        assert 10 < len(text) < 300, (name, text)


def test_each_kind_shows_its_table_and_picture_in_a_notebook(results):
    pytest.importorskip("matplotlib")
    pictured = set()
    for name, result in results.items():
        page = result._repr_html_()
        assert page.count("<div>") == page.count("</div>") == 1, name
        if "data:image/png;base64,iVBORw0KGgo" in page:
            pictured.add(name)
        assert ("<table>" in page) == bool(result._table()), name
    without = {"batch", "trace", "diagonal", "threshold", "trial", "data", "reproduction"}
    without |= {"function", "factor", "pivoted", "left out"}
    assert pictured == set(results) - without


def test_pages_are_escaped_and_end():
    class Odd(Shown):
        def _line(self):
            return "<script>"

        def _table(self):
            return [{"a<b": "x<y", "n": None}] * (MOST_ROWS + 7)

    page = Odd()._repr_html_()
    assert "<script>" not in page
    assert "x&lt;y" in page
    assert "a&lt;b" in page
    assert page.count("<tr>") == MOST_ROWS + 1
    assert "and 7 more rows" in page


def test_a_notebook_without_matplotlib_has_the_table(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = results["density"]._repr_html_()
    assert "<table>" in page
    assert "<img" not in page


def test_results_come_apart(results):
    values, vectors = results["eigsh"]
    assert values is results["eigsh"].eigenvalues
    assert vectors is results["eigsh"].eigenvectors
    value, error = results["trace"]
    assert (value, error) == (results["trace"].value, results["trace"].error)


@pytest.mark.parametrize(
    "name",
    [
        *("eigsh", "trace", "diagonal", "density", "window", "threshold", "trial", "data"),
        *("solve", "function", "pivoted", "left out"),
    ],
)
def test_results_are_saved_and_loaded_with_weights_only(results, name):
    file = io.BytesIO()
    torch.save(results[name], file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is type(results[name])
    assert repr(loaded) == repr(results[name])
    assert json.dumps(loaded._table()) == json.dumps(results[name]._table())


def test_frames_have_the_rows_of_the_table(results):
    pandas = pytest.importorskip("pandas")
    for name in ("eigsh", "tracker", "sweep"):
        frame = results[name].to_pandas()
        assert isinstance(frame, pandas.DataFrame)
        assert len(frame) == len(results[name]._table()) > 0
    assert results["eigsh"].to_pandas()["eigenvalue"].tolist() == pytest.approx(
        results["eigsh"].eigenvalues.tolist()
    )
    assert all(isinstance(value, float) for value in results["tracker"].to_pandas()["lambda"])


def test_a_missing_pandas_is_named(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs pandas: pip install pandas"):
        results["eigsh"].to_pandas()


HEADS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", HEADS)
@pytest.mark.parametrize(
    "name", ["eigsh", "density", "window", "plane", "noise", "bifurcation", "sweep", "tracker"]
)
def test_pictures_are_written_in_the_format_of_their_suffix(results, tmp_path, name, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"picture{suffix}"
    results[name].plot(path)
    assert path.read_bytes().startswith(HEADS[suffix])


def test_a_suffix_in_capitals_is_the_same_format(results, tmp_path):
    pytest.importorskip("matplotlib")
    results["density"].plot(tmp_path / "a.PNG")
    results["density"].plot(tmp_path / "b.png")
    assert (tmp_path / "a.PNG").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_another_suffix_is_refused_and_nothing_is_written(results, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.docx"
    with pytest.raises(ValueError, match=r"path must end in one of \.png, \.svg, \.pdf, got"):
        results["density"].plot(path)
    assert not path.exists()


def test_figures_show_without_pyplot(results):
    pytest.importorskip("matplotlib")
    assert results["density"].plot()._repr_png_().startswith(HEADS[".png"])


def test_eigenvectors_by_name(model, data):
    ggn = cx.GGN(model, "half_mse", data.train)
    found = cx.eigsh(ggn, k=2)
    parts = ggn.by_name(found.eigenvectors)
    named = dict(model.named_parameters())
    assert list(parts) == list(named)
    assert all(parts[name].shape == (2, *p.shape) for name, p in named.items())
    flat = torch.cat([parts[name].flatten(1) for name in named], 1)
    assert torch.equal(flat.T, found.eigenvectors)
    one = cx.Hessian(model, "half_mse", data.train).by_name(found.eigenvectors[:, 0])
    assert all(torch.equal(one[name], parts[name][0]) for name in named)
    both = (2 * ggn + ggn.shift(1.0)).by_name(found.eigenvectors)
    assert torch.equal(both[next(iter(named))], parts[next(iter(named))])
    inverse = torch.ones(ggn.shape[0], dtype=F64)
    assert Preconditioned.by(ggn, inverse).by_name(found.eigenvectors).keys() == parts.keys()


def test_vectors_that_are_not_over_parameters_are_refused(model, data):
    kernel = cx.NTK(model, data.x_train)
    with pytest.raises(ValueError, match=r"NTK\.by_name: the operator must act on parameters"):
        kernel.by_name(torch.zeros(kernel.shape[0], dtype=F64))
    ggn = cx.GGN(model, "half_mse", data.train)
    with pytest.raises(ValueError, match=r"GGN\.by_name: vectors must be \(\d+,\).*got \(3,\)"):
        ggn.by_name(torch.zeros(3))


def test_completion_offers_public_names_only():
    named = [cx, *(getattr(cx, n) for n in ("data", "eig", "linops", "losses", "models", "ops"))]
    named += [getattr(cx, n) for n in ("probes", "toy", "experiments")]
    for package in named:
        offered = dir(package)
        inner = {m.name for m in pkgutil.iter_modules(package.__path__)}
        assert set(package.__all__) <= set(offered), package.__name__
        if package is not cx:
            hidden = inner - set(package.__all__)
            assert not hidden & set(offered), package.__name__
        assert not [name for name in offered if name.startswith("_") and name != "__version__"]
