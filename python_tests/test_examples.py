"""The four jobs of the gallery: short scripts that run as they stand and leave their pictures."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
#: What each prints, what it leaves, and the packages it needs.
JOBS = {
    "too_large": (r"start with [\d.]+ and expect the largest rate that trains", (), ("sklearn",)),
    "language_model": (r"\[\d+\.\d+, ", ("lm",), ("transformers", "accelerate")),
    "resnet_layers": (
        r"15 blocks of the GGN",
        ("resnet_density.png", "layers.pt"),
        ("sklearn",),
    ),
    "kernel_regression": (r"accuracy on 200 test images: 9\d\.\d%", (), ("sklearn",)),
}
PICTURES = {"kernel_regression": "kernel_spectrum"}


@pytest.mark.parametrize("name", JOBS)
def test_the_job_runs_as_it_stands(name, tmp_path, monkeypatch, capsys):
    text, files, packages = JOBS[name]
    for package in (*packages, "matplotlib"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert re.search(text, capsys.readouterr().out)
    for file in (f"{PICTURES.get(name, name)}.png", *files):
        assert (tmp_path / file).exists(), file


@pytest.mark.parametrize("name", JOBS)
def test_the_job_is_short_and_in_the_gallery(name):
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 25
    page = (ROOT / "docs" / "gallery.md").read_text()
    assert f'--8<-- "docs/examples/{name}.py"' in page
    picture = f"images/examples/{PICTURES.get(name, name)}.png"
    assert picture in page
    assert (ROOT / "docs" / picture).read_bytes().startswith(b"\x89PNG")
