"""Every public door takes the same forms of data and the same options, and gives right values.

The tables FORMS, OPTIONS and DOORS are multiplied out.  All forms hold one data set, whose
eigenvalues are known from explicit matrices in float64.
"""

import dataclasses
import functools
import sys
import types
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import catapult_ext as cx
from catapult_ext import cli
from catapult_ext.experiments import probing

N, T = 6, 3  # samples, tokens
D, V = 2, 4  # features, classes
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, T, D, generator=GENERATOR, dtype=torch.float64)
SCALE = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64).unsqueeze(1)  # (T, 1), of no sample
Y = torch.randint(V, (N, T), generator=GENERATOR)
Y[1, 2] = -100
LOSS = nn.CrossEntropyLoss()


class Net(nn.Module):
    """(N, T, D) and a constant to (N, T, V); subclasses differ in how they are called."""

    def __init__(self, middle=nn.Tanh):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(D, 3), middle(), nn.Linear(3, V)
        self.double().eval()

    def logits(self, x, scale=SCALE):
        return self.last(self.middle(self.first(x * scale)))

    def forward(self, x, scale=SCALE):
        return self.logits(x, scale)


class ClassesSecond(Net):
    def forward(self, x):
        return self.logits(x).transpose(1, 2)


class Transformer(Net):
    """As those of transformers: labels in, an object with loss and logits out."""

    def forward(self, x, labels=None):
        f = self.logits(x)
        loss = None if labels is None else LOSS(f.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": f, "attentions": (x,)}


class Causal(Net):
    """As language models: the output at one position is compared with the label of the next."""

    def forward(self, x, labels):
        f = self.logits(x)
        return LOSS(f[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), f


class OfDict(Net):
    def forward(self, batch):
        return self.logits(batch["x"])


class OfRecord(Net):
    def forward(self, batch):
        return {"hidden": None, "prediction": self.logits(batch.x, batch.scale)}


Named = namedtuple("Named", ["x", "scale", "labels"])


@dataclasses.dataclass(frozen=True)
class Record:
    x: torch.Tensor
    scale: torch.Tensor
    y: torch.Tensor


class Graph:
    """As a torch_geometric Data: fields by name, and no known container."""

    def __init__(self, **fields):
        self.__dict__.update(fields)

    def keys(self):
        return list(self.__dict__)

    def __getitem__(self, name):
        return getattr(self, name)


def loader(items, collate=None):
    return DataLoader(items, batch_size=4, collate_fn=collate)


def flat(model, x):
    return model(x).flatten(0, 1)


PREVIOUS = torch.cat([torch.full((N, 1), -100), Y[:, :-1]], 1)  # labels that shift to Y, but one
NEXT = torch.cat([PREVIOUS[:, 1:], torch.full((N, 1), -100)], 1)
# model, data, options, and the labels that position by position give the same loss
FORMS = {
    "pair": (Net, (X, Y), {}, Y),
    "list": (Net, [X, Y], {}, Y),
    "classes second": (ClassesSecond, (X, Y), {}, Y),
    "a constant beside the batch": (Net, ((X, SCALE), Y), {}, Y),
    "names": (Net, ({"x": X, "scale": SCALE}, Y), {}, Y),
    "labels inside": (Transformer, {"x": X, "labels": Y}, {}, Y),
    "labels that the model does not take": (Net, {"x": X, "target": Y}, {}, Y),
    "labels of the next token": (Causal, {"x": X, "labels": PREVIOUS}, {}, NEXT),
    "one dictionary": (OfDict, {"x": X, "labels": Y, "length": 3}, {}, Y),
    "named tuple": (Net, Named(X, SCALE, Y), {}, Y),
    "record": (OfRecord, Record(X, SCALE, Y), {}, Y),
    "graph": (Net, Graph(x=X, scale=SCALE, y=Y, edges=None), {}, Y),
    "batches": (Net, [(X[:4], Y[:4]), (X[4:], Y[4:])], {}, Y),
    "loader": (Net, loader(list(zip(X, Y, strict=True))), {}, Y),
    "loader of dictionaries": (
        Transformer,
        loader([{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]),
        {},
        Y,
    ),
    "loader of records": (
        OfRecord,
        loader(range(N), lambda index: Record(X[index], SCALE, Y[index])),
        {},
        Y,
    ),
    "one row a token": (Net, (X, Y.flatten()), {"forward": flat}, Y),
}


@functools.cache
def explicit(middle, params, drawn, labels):
    """Largest eigenvalues of the explicit matrices, by torch alone."""
    model = Net(middle)
    model.train(drawn or middle is Normalised)
    held = {n: p.detach() for n, p in model.named_parameters()}
    names = [n for n in held if params is None or n.startswith(params)]
    at = torch.cat([held[n].flatten() for n in names])

    def outputs(theta):
        parts = theta.split([held[n].numel() for n in names])
        own = {n: t.view(held[n].shape) for n, t in zip(names, parts, strict=True)}
        with torch.random.fork_rng():
            torch.manual_seed(0)  # as dropout="fixed" of seed 0
            return torch.func.functional_call(model, held | own, (X,)).flatten(0, 1)

    def loss(f):
        return LOSS(f, torch.tensor(labels))

    f = outputs(at).detach()
    j = torch.autograd.functional.jacobian(outputs, at)
    h = torch.autograd.functional.hessian(loss, f).view(f.numel(), -1)
    slope = torch.autograd.functional.jacobian(loss, f)
    terms = torch.einsum("no,nop->np", slope, j)
    count = sum(label >= 0 for label in labels)
    j = j.flatten(0, 1)
    matrices = {
        "NTK": j @ j.T,
        "GGN": j.T @ h @ j,
        "Hessian": torch.autograd.functional.hessian(lambda theta: loss(outputs(theta)), at),
        "EmpiricalFisher": count * terms.T @ terms,
    }
    return {name: torch.linalg.eigvalsh(matrix)[-1].item() for name, matrix in matrices.items()}


def top(operator):
    return cx.eigsh(operator, tol=1e-7).eigenvalues[0].item()


def inputs(data):
    pair = type(data) in (tuple, list) and len(data) == 2 and not isinstance(data[0], (tuple, list))
    beside = type(data) is tuple and isinstance(data[0], tuple)
    return data[0] if pair or beside else data


def ntk(model, data, options):
    if isinstance(data, list) and not isinstance(data[0], torch.Tensor):
        return top(cx.StreamedNTK(model, data, **options))  # a list is one input for NTK
    return top(cx.NTK(model, inputs(data), **options))


def by_tracker(model, data, options):
    with cx.CurvatureTracker(model, LOSS, data, tol=1e-7, **options) as tracker:
        pass
    return tracker.probes[0]["values"][0]


def by_stepped_tracker(model, data, options):
    with cx.CurvatureTracker(
        model, LOSS, quantity="hessian", every=1, tol=1e-7, **options
    ) as tracker:
        return tracker.step(1.0, batch=data)["values"][0]


def by_probe(model, data, options):
    result = probing.probe(model, LOSS, data, tol=1e-7, k=1, density=False, **options)
    found = {row["quantity"]: row["value"] for row in result.rows}
    assert found["GGN"] == pytest.approx(result.window.lambda0, rel=1e-6)
    return found["Hessian"]


def by_command(command, model, data, options, capsys):
    """A command on factories, with the options as words."""
    held = types.ModuleType("doors_case")
    held.net, held.data = lambda: model, lambda: data
    words = [command, "doors_case:net", "--data", "doors_case:data", "--loss", "cross_entropy"]
    for name, value in options.items():
        if callable(value):
            held.chosen, value = value, "doors_case:chosen"
        words += ["--" + name.replace("_", "-"), value]
    sys.modules["doors_case"] = held
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
    finally:
        del sys.modules["doors_case"]
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    line = next(line for line in out.splitlines() if line.startswith("lambda_0"))
    return float(line.split()[1])


# name: the quantity, and how a door gives it
DOORS = {
    "NTK": ("NTK", ntk),
    "GGN": ("GGN", lambda m, d, o: top(cx.GGN(m, LOSS, d, **o))),
    "Hessian": ("Hessian", lambda m, d, o: top(cx.Hessian(m, LOSS, d, **o))),
    "EmpiricalFisher": (
        "EmpiricalFisher",
        lambda m, d, o: top(cx.EmpiricalFisher(m, LOSS, d, **o)),
    ),
    "StreamedGGN": ("GGN", lambda m, d, o: top(cx.StreamedGGN(m, LOSS, streamed(d), **o))),
    "StreamedHessian": (
        "Hessian",
        lambda m, d, o: top(cx.StreamedHessian(m, LOSS, streamed(d), **o)),
    ),
    "tracker": ("GGN", by_tracker),
    "tracker of batches": ("Hessian", by_stepped_tracker),
    "window": ("GGN", lambda m, d, o: cx.learning_rate_window(m, LOSS, d, tol=1e-7, **o).lambda0),
    "sweep": (
        "GGN",
        lambda m, d, o: cx.sweep(m, d, c=[0.5], steps=1, loss=LOSS, tol=1e-6, **o).summary[
            "lambda0"
        ],
    ),
    "probe": ("Hessian", by_probe),
    "max-lr": ("GGN", None),
    "catapult-ext probe": ("GGN", None),
}


def streamed(data):
    """Streamed operators iterate over a list: one pair is a tuple."""
    return tuple(data) if isinstance(data, list) and isinstance(data[0], torch.Tensor) else data


def through(door, model, data, options, capsys):
    quantity, find = DOORS[door]
    if find is None:
        command = "max-lr" if door == "max-lr" else "probe"
        return quantity, by_command(command, model, data, options, capsys), 1e-4
    return quantity, find(model, data, options), 1e-5


# every pair of the table; of doors that share their way with another one, some by default
SHARING = {"EmpiricalFisher", "StreamedHessian", "probe", "catapult-ext probe"}
ALWAYS = {"pair", "labels of the next token", "loader of records", "one row a token"}
PAIRS = [
    pytest.param(form, door, marks=pytest.mark.nightly)
    if door in SHARING and form not in ALWAYS
    else (form, door)
    for form in FORMS
    for door in DOORS
]


@pytest.mark.parametrize(("form", "door"), PAIRS)
def test_forms(form, door, capsys):
    build, data, options, labels = FORMS[form]
    quantity, found, near = through(door, build(), data, options, capsys)
    right = explicit(nn.Tanh, None, False, tuple(labels.flatten().tolist()))[quantity]
    assert found == pytest.approx(right, rel=near)


class Normalised(nn.Module):
    """Batch normalisation of (N, T, C) over samples and positions."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2).tanh()


# middle of the net, mode, options, and what they mean for the explicit matrices
OPTIONS = {
    "params": (nn.Tanh, False, {"params": "last.*"}, {"params": "last."}),
    "dropout": (functools.partial(nn.Dropout, 0.4), True, {"dropout": "fixed"}, {"drawn": True}),
    "batch_stats": (Normalised, True, {"batch_stats": "coupled"}, {}),
    "memory_budget": (nn.Tanh, False, {"memory_budget": "1 GiB"}, {}),
    "forward": (nn.Tanh, False, {"forward": flat}, {}),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, door, capsys):
    middle, training, options, meant = OPTIONS[option]
    model, labels = Net(middle), Y.flatten()
    model.train(training)
    data = (X, labels if option == "forward" else Y)
    quantity, found, near = through(door, model, data, options, capsys)
    means = {"params": None, "drawn": False} | meant
    key = tuple(labels.tolist())
    right = explicit(middle, means["params"], means["drawn"], key)[quantity]
    assert found == pytest.approx(right, rel=near)
    assert model.training == training or door in ("max-lr", "catapult-ext probe")
