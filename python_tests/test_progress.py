"""One protocol of progress for every long call: a function, a bar, lines, or nothing."""

import _thread
import io
import sys
import types

import pytest
import torch

import catapult_ext as cx
from catapult_ext._progress import Bar, for_people

DATA = cx.data.digits(train=24).train
NET = cx.models.fully_connected(64, 10, width=16, depth=2)
TOY = {"x": torch.tensor([[1.0, 0.5], [0.2, -1.0]]), "y": torch.tensor([0.3, 0.1])}


def ggn(loss="half_mse"):
    return cx.GGN(NET, loss, DATA)


def matrix():
    return torch.diag(torch.linspace(1.0, 2.0, 300))


def convolution():
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(144, 2),
    ]
    return torch.nn.Sequential(*layers), torch.randn(6, 1, 8, 8)


def by_products():
    """A dual whose matrix is not written out."""
    net, x = convolution()
    return cx.GGN(net, "half_mse", (x, torch.zeros(6, 2)))


SEEDS = [cx.models.fully_connected(64, 10, width=8, depth=1, seed=seed) for seed in range(3)]


class Scaled(torch.nn.Module):
    """A setting that is no tensor: such models are multiplied one by one."""

    def __init__(self, factor):
        super().__init__()
        self.layer, self.factor = torch.nn.Linear(4, 3), factor

    def forward(self, x):
        return self.factor * self.layer(x)


def one_by_one():
    torch.manual_seed(0)
    kernel = cx.NTK([Scaled(factor) for factor in (1.0, 2.0, 3.0)], torch.randn(5, 4))
    assert "one by one" in kernel.plan
    return kernel


class Batch:
    """Two operators at once."""

    def __init__(self, matrices):
        self.matrices, self.shape, self.dtype = matrices, tuple(matrices.shape), matrices.dtype

    def __matmul__(self, vectors):
        return self.matrices @ vectors

    def replicas(self, index):
        return Batch(self.matrices[index])


MATRICES = torch.diag_embed(torch.linspace(0.1, 1, 60).expand(2, -1))
CALLS = {
    "eigsh": lambda p, out: cx.eigsh(ggn(), 2, progress=p),
    "eigsh, dual": lambda p, out: cx.eigsh(by_products(), progress=p),
    "eigsh, batch": lambda p, out: cx.eigsh(Batch(MATRICES), progress=p),
    "eigsh, mixed": lambda p, out: cx.eigsh(matrix(), precision="mixed", progress=p),
    "hutchinson_trace": lambda p, out: cx.hutchinson_trace(ggn(), progress=p),
    "hutchinson_diagonal": lambda p, out: cx.hutchinson_diagonal(ggn(), progress=p),
    "xtrace": lambda p, out: cx.xtrace(ggn(), progress=p),
    "xdiag": lambda p, out: cx.xdiag(ggn(), progress=p),
    "spectral_density": lambda p, out: cx.spectral_density(ggn(), 8, 3, progress=p),
    "solve": lambda p, out: cx.solve(ggn(), torch.ones(ggn().n_params), shift=1.0, progress=p),
    "matrix_function": lambda p, out: cx.matrix_function(
        ggn(), torch.exp, torch.ones(ggn().n_params), progress=p
    ),
    "logdet": lambda p, out: cx.logdet(ggn(), shift=1.0, steps=5, samples=9, progress=p),
    "cholesky": lambda p, out: cx.cholesky(torch.eye(9), file=out / "factor.npy", progress=p),
    "GGN.dense": lambda p, out: ggn().dense(progress=p),
    "Jacobian.dense": lambda p, out: cx.Jacobian(*convolution()).dense(progress=p),
    "Combination.dense": lambda p, out: (2 * ggn()).shift(1.0).dense(progress=p),
    "Preconditioned.dense": lambda p, out: cx.Preconditioned.by(
        ggn(), torch.ones(ggn().n_params)
    ).dense(progress=p),
    "NTK.dense": lambda p, out: cx.NTK(*convolution()).dense(progress=p),
    "NTK.dense, tiles": lambda p, out: cx.NTK(
        *convolution(), memory_budget="12 MiB", samples_at_once=2
    ).dense(progress=p),
    "NTK.dense, file": lambda p, out: cx.NTK(*convolution()).dense(
        file=out / "kernel.npy", progress=p
    ),
    "StackedGGN.dense": lambda p, out: cx.GGN(SEEDS, "half_mse", DATA).dense(progress=p),
    "StackedNTK.dense": lambda p, out: cx.NTK(SEEDS, DATA[0]).dense(progress=p),
    "StackedNTK.dense, one by one": lambda p, out: one_by_one().dense(progress=p),
    "run_scalar": lambda p, out: cx.toy.run_scalar(
        torch.linspace(0.5, 5.0, 3000), steps=50, progress=p
    ),
    "lyapunov_exponent": lambda p, out: cx.toy.lyapunov_exponent(
        torch.linspace(0.1, 1.0, 40), 0.0, 0.1, steps=99, progress=p
    ),
    "lyapunov_edge": lambda p, out: cx.toy.lyapunov_edge(
        torch.tensor([0.0, 0.5]), 0.1, tolerance=0.5, paths=8, progress=p
    ),
    "learning_rate_window": lambda p, out: cx.learning_rate_window(
        NET, "half_mse", DATA, trial_steps=0, measure=3, progress=p
    ),
    "simulate": lambda p, out: cx.toy.simulate(c=[1.0] * 30, width=32, steps=9, progress=p, **TOY),
    "simulate, torch": lambda p, out: cx.toy.simulate(
        c=[1.0, 2.0], width=32, steps=9, l2=0.1, progress=p, **TOY
    ),
    "sweep": lambda p, out: cx.sweep(NET, DATA, c=[0.5, 1.0], steps=2, out=out / "run", progress=p),
    "phase_diagram": lambda p, out: cx.toy.phase_diagram(
        resolution=4, steps=9, out=out / "run", progress=p
    ),
    "bifurcation": lambda p, out: cx.toy.bifurcation([0.5, 1.0], burn_in=9, keep=4, progress=p),
    "noise_plane": lambda p, out: cx.toy.noise_plane(
        beta=(0.0, 0.5), resolution=2, max_steps=400, tolerance=0.5, progress=p
    ),
}


def labels():
    return DATA[0], DATA[1].argmax(1)


@pytest.mark.parametrize("name", CALLS)
def test_a_function_is_told_what_is_done(name, tmp_path):
    seen = []
    CALLS[name](lambda done, total: seen.append((done, total)), tmp_path)
    assert seen
    assert all(isinstance(n, int) for pair in seen for n in pair)
    for part in parts(seen):
        assert part == sorted(part)
        assert 0 <= part[0][0] <= part[-1][0] <= part[-1][1]
    if not name.startswith(("eigsh", "solve", "learning")):  # whose ends are not known beforehand
        assert seen[-1][0] == seen[-1][1]


def parts(seen):
    """Runs of one total: a sum of operators counts each anew."""
    out = [[seen[0]]]
    for pair in seen[1:]:
        same = pair[1] == out[-1][-1][1] and pair >= out[-1][-1]
        out[-1].append(pair) if same else out.append([pair])
    return out


@pytest.mark.parametrize("name", CALLS)
def test_a_function_that_raises_ends_the_call_by_its_own_error(name, tmp_path):
    class Enough(Exception):
        pass

    calls = []

    def stop(done, total):
        calls.append(done)
        raise Enough("enough")

    with pytest.raises(Enough, match="enough") as caught:
        CALLS[name](stop, tmp_path)
    assert len(calls) == 1  # nothing goes on behind its back
    if sys.version_info >= (3, 11):
        function = name.split(",")[0].split(".")[-1]
        assert f"{function}" in caught.value.__notes__[0]
        assert "progress=" in caught.value.__notes__[0]
    CALLS[name](None, tmp_path)  # and nothing is left half-made: a stored run resumes


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_ends_every_call_within_a_chunk(name, tmp_path):
    """The signal comes in the first chunk; nothing on the way may swallow it."""
    chunks = []

    def press(done, total):
        chunks.append(done)
        if len(chunks) == 1:
            _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        CALLS[name](press, tmp_path)
    assert len(chunks) <= 2
    CALLS[name](None, tmp_path)  # what was finished is kept, and nothing is left half-made


def loop(log=None, **options):
    optimizer = torch.optim.SGD(NET.parameters(), lr=0.0)
    tracker = cx.CurvatureTracker(NET, "half_mse", DATA, optimizer=optimizer, every=1, **options)
    with tracker:
        for _ in range(3):
            tracker.step(1.0)


PRODUCTS = {
    "diagonal": lambda: cx.Hessian(NET, "half_mse", DATA).diagonal(),
    "trace": lambda: cx.Hessian(NET, "half_mse", DATA).trace(),
    "TopTracker.update": lambda: cx.TopTracker().update(cx.Hessian(NET, "half_mse", DATA)),
    "CurvatureTracker": lambda: loop(quantity="hessian"),
}


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", PRODUCTS)
def test_ctrl_c_ends_what_has_no_progress_within_a_product(name, monkeypatch):
    products = []
    plain = cx.Hessian._matmat

    def product(self, vectors):
        products.append(1)
        if len(products) == 2:
            _thread.interrupt_main()
        return plain(self, vectors)

    monkeypatch.setattr(cx.Hessian, "_matmat", product)
    with pytest.raises(KeyboardInterrupt):
        PRODUCTS[name]()
    assert len(products) <= 3


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_sweep_within_a_step(tmp_path):
    steps = []

    class Pressed(cx.experiments.Progress):
        def step(self, step, loss):
            steps.append(step)
            if len(steps) == 1:
                _thread.interrupt_main()

    given = {"c": [0.5, 1.0], "steps": 6, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        cx.sweep(NET, DATA, progress=Pressed(), **given)
    assert len(steps) <= 2
    assert len(cx.sweep(NET, DATA, **given).table()) == 2


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_progress_is_refused_before_any_work(name, tmp_path):
    with pytest.raises(TypeError, match=r"progress must be True, False, None or a function.*str"):
        CALLS[name]("yes", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_results_do_not_depend_on_who_looks():
    kernel = cx.NTK(*convolution())
    assert torch.equal(kernel.dense(), kernel.dense(progress=lambda *_: None))
    toy = {"c": [1.0, 2.6] * 15, "width": 32, "steps": 9, **TOY}
    quiet, watched = (cx.toy.simulate(**toy, progress=p) for p in (None, lambda *_: None))
    assert torch.equal(quiet.loss, watched.loss)
    kernels = cx.NTK(SEEDS, DATA[0])
    assert torch.equal(kernels.dense(), kernels.dense(progress=lambda *_: None))


@pytest.mark.parametrize("record_every", [0, 10])
def test_lanes_do_not_depend_on_who_looks(record_every):
    given = {"c": torch.linspace(0.5, 5.0, 3000), "steps": 50, "record_every": record_every}
    given["momentum"] = torch.linspace(0.0, 0.5, 3000)
    seen = []
    watched = cx.toy.run_scalar(**given, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1024, 3000), (2048, 3000), (3000, 3000)]
    for name, value in vars(cx.toy.run_scalar(**given)).items():
        assert torch.equal(value, getattr(watched, name)), name
    assert cx.toy.run_scalar(torch.zeros(0), steps=3, progress=lambda *_: None).c.shape == (0,)


def test_sampled_paths_do_not_depend_on_who_looks():
    rates, momenta = torch.linspace(0.1, 3.0, 40), torch.tensor([[0.0], [0.5]])
    seen = []

    def look(done, total):
        seen.append((done, total))

    given = {"steps": 200, "paths": 16}
    quiet = cx.toy.lyapunov_exponent(rates, momenta, 0.3, **given)
    watched = cx.toy.lyapunov_exponent(rates, momenta, 0.3, **given, progress=look)
    assert torch.equal(quiet.value, watched.value)
    assert torch.equal(quiet.error, watched.error)
    assert seen == [(done, 80) for done in (16, 32, 40, 56, 72, 80)]
    noise = torch.linspace(0.05, 1.0, 20)
    given = {"tolerance": 0.3, "paths": 8}
    quiet = cx.toy.lyapunov_edge(0.5, noise, **given)
    watched = cx.toy.lyapunov_edge(0.5, noise, **given, progress=look)
    assert torch.equal(quiet.value, watched.value)
    assert torch.equal(quiet.error, watched.error)
    assert seen[-2:] == [(16, 20), (20, 20)]


def test_nothing_is_written_unasked(capsys):
    for progress in (None, False):
        cx.hutchinson_trace(ggn(), 4, progress=progress)
    assert capsys.readouterr() == ("", "")


def test_the_channel_of_logging_has_a_line_for_every_call(caplog):
    with caplog.at_level("INFO", logger="catapult_ext"):
        cx.hutchinson_trace(ggn(), 4)
        loop()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("hutchinson_trace: 4 products in ")
    probes = [line for line in lines if line.startswith("CurvatureTracker at step ")]
    assert len(probes) == 4
    assert probes[0].startswith("CurvatureTracker at step 0: curvature/lambda_1 ")
    caplog.clear()
    cx.hutchinson_trace(ggn(), 4)
    assert caplog.records == []  # not unless asked


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def shown(stream, times, **options):
    clock = iter(times)
    bar = Bar("eigsh", "products", stream=stream, clock=lambda: next(clock), **options)
    for done in range(1, len(times) - 1):
        bar.show(10 * done, 100)
    bar.close()
    return stream.getvalue()


def test_lines_where_there_is_no_terminal():
    text = shown(Stream(False), [0, 1, 12, 13, 25, 30])
    assert text.splitlines() == [
        "catapult_ext.eigsh: 20 of 100 products, 12 s, about 48 s left",
        "catapult_ext.eigsh: 40 of 100 products, 25 s, about 38 s left",
        "catapult_ext.eigsh: 40 of 100 products, 30 s, about 45 s left",
    ]
    assert shown(Stream(False), [0, 1, 2, 3]) == ""  # a short call writes nothing


def test_a_bar_in_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = shown(Stream(True), [0, 0.01, 0.05, 2, 3, 4], of="of at most")
    assert text.endswith("\n")
    drawn = [line.rstrip() for line in text.split("\r")[1:]]
    assert drawn[0] == "eigsh: 10 of at most 100 products, 0.01 s [##......................]"
    assert [line.split(" of")[0] for line in drawn] == [f"eigsh: {n}" for n in (10, 30, 40, 40)]
    monkeypatch.setenv("COLUMNS", "30")
    assert all(len(line) < 30 for line in shown(Stream(True), [0, 1, 2]).strip().split("\r"))


def test_a_bar_in_a_notebook(monkeypatch):
    """A made-up IPython: the real one is tried in test_notebooks.py."""
    pages = []

    class Cell:
        def update(self, page):
            pages.append(page)

    def display(page, display_id):
        pages.append(page)
        return Cell()

    shell = types.SimpleNamespace(kernel=None)
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.HTML, ipython.display.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    cx.hutchinson_trace(ggn(), 16, progress=True)
    assert pages[0].startswith('<progress value="2" max="16">')
    assert pages[-1].startswith('<progress value="16" max="16"></progress> hutchinson_trace: 16 of')


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.013, "0.013 s"),
        (9.96, "10 s"),
        (99, "99 s"),
        (600, "10 min"),
        (7200, "2.0 h"),
    ],
)
def test_times_for_people(seconds, text):
    assert for_people(seconds) == text


def test_a_matrix_too_large_is_refused_in_our_words():
    """Of 900 000 parameters: the allocator said "you tried to allocate 3242160360000 bytes"."""
    big = torch.nn.Linear(900, 1000)
    operator = cx.GGN(big, "half_mse", (torch.zeros(2, 900), torch.zeros(2, 1000)))
    needs = r"GGN.dense: the matrix \(901000, 901000\), 2.95 TiB, must fit the free memory; eigsh"
    with pytest.raises(ValueError, match=needs):
        operator.dense()
    small = cx.GGN(NET, "half_mse", DATA, memory_budget="16 MiB")
    wide = torch.nn.Linear(64, 40)
    limited = cx.GGN(wide, "half_mse", (DATA[0], torch.zeros(24, 40)), memory_budget="16 MiB")
    with pytest.raises(ValueError, match=r"must fit the memory budget; eigsh.*got 16 MiB"):
        limited.dense()
    assert small.dense().shape == small.shape
