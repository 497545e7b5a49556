"""Results in a notebook that is executed without a browser: tables, pictures, progress."""

import base64

import pytest

CELLS = {
    "eigenvalues": """
import torch
import catapult_ext as cx

torch.set_num_threads(1)
data = cx.data.digits(train=16)
model = cx.models.fully_connected(64, 10, width=8, depth=2)
G = cx.GGN(model, "half_mse", data.train)
cx.eigsh(G, k=3)
""",
    "density": "cx.spectral_density(G, steps=8, samples=4, progress=True)",
    "trajectory": """
cx.toy.simulate(c=[1.0, 3.0], width=32, steps=9, x=data.x_train[:4], y=data.y_train[:4, 0])
""",
    "window": 'cx.learning_rate_window(model, "half_mse", data.train, trial_steps=2)',
    "tracker": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
tracker = cx.CurvatureTracker(model, "half_mse", data.train, optimizer=optimizer, every=1)
with tracker:
    for _ in range(3):
        optimizer.zero_grad()
        loss = (model(data.x_train) - data.y_train).square().sum() / 32
        loss.backward()
        optimizer.step()
        tracker.step(loss)
tracker
""",
    "plot": "tracker.plot()",
    "plan": "print(G.plan)",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What each cell shows, of one kernel."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    book = nbformat.v4.new_notebook(cells=cells)
    folder = tmp_path_factory.mktemp("notebook")
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": folder}}).execute()
    return {name: cell["outputs"] for name, cell in zip(CELLS, book.cells, strict=True)}


def shown(outputs):
    """The pages and pictures of a cell's outputs."""
    return [dict(out["data"]) for out in outputs if "data" in out]


@pytest.mark.parametrize("name", ["eigenvalues", "density", "trajectory", "window", "tracker"])
def test_a_result_shows_its_table_and_picture(outputs, name):
    page = shown(outputs[name])[-1]["text/html"]
    assert page.count("<tr>") >= 2
    start = page.index("data:image/png;base64,") + len("data:image/png;base64,")
    picture = base64.b64decode(page[start : page.index('"', start)])
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000


def test_a_plot_shows_without_pyplot(outputs):
    assert base64.b64decode(shown(outputs["plot"])[-1]["image/png"]).startswith(b"\x89PNG")


def test_progress_is_a_bar_in_the_cell_and_ends_whole(outputs):
    bars = [page["text/html"] for page in shown(outputs["density"]) if "<progress" in str(page)]
    assert len(bars) == 1  # one that is updated in place
    assert bars[0].startswith(
        '<progress value="32" max="32"></progress> spectral_density: 32 of 32'
    )


def test_nothing_is_an_error_or_a_warning(outputs):
    texts = [out.get("text", "") for cell in outputs.values() for out in cell]
    assert all(out["output_type"] != "error" for cell in outputs.values() for out in cell)
    assert not any("Warning" in text for text in texts)
    assert "about" in "".join(texts)  # the plan, in seconds
