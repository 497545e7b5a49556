"""Networks from public packages called as their own documentation calls them.

No ``forward=``, in float32: outputs as they are, and for transformers a batch with mask and labels.
The truth is double backward on a copy in float64.
"""

import contextlib
import copy
import inspect
import warnings

import pytest
import torch
from architectures import brute_force, catalogue
from torch import nn

import catapult_ext as cx

ENTRIES = catalogue.load()
ABSENT = pytest.mark.skip(reason="none of the packages of the catalogue is installed")
CASES = [
    pytest.param(e, id=e.name, marks=() if e.default else pytest.mark.nightly)
    for e in ENTRIES.values()
] or [pytest.param(None, id="none", marks=ABSENT)]
LABELLED = [case for case in CASES if case.id.startswith(("transformers/", "none"))] or [
    pytest.param(None, id="none", marks=ABSENT)
]
TOLERANCE = 5e-4  # float32 against float64


class Truth:
    """A copy in float64; its outputs, its loss, and products by double backward."""

    def __init__(self, model, x):
        self.model = copy.deepcopy(model).double()
        self.x = brute_force.widened(x)
        plain = copy.deepcopy(self.model)
        self.low = brute_force.computes_in_float32(lambda: self.call(plain))
        self.params = [p for p in self.model.parameters() if p.requires_grad]

    def call(self, model=None):
        model = self.model if model is None else model
        if isinstance(self.x, dict):
            return model(**self.x)
        return model(*self.x) if isinstance(self.x, tuple) else model(self.x)

    def returned(self):
        wide = brute_force.Widened() if self.low else contextlib.nullcontext()
        with wide, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return self.call()

    def pulled(self, value, seed=None, **options):
        found = torch.autograd.grad(value, self.params, seed, allow_unused=True, **options)
        pairs = zip(found, self.params, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    def pushed(self, f, v, twice):
        """J v: by double backward, or row by row where a backward pass has no derivative."""
        if not twice:
            rows = [self.pulled(entry, retain_graph=True) @ v for entry in f.flatten()]
            return torch.stack(rows).view(f.shape)
        u = torch.zeros_like(f, requires_grad=True)
        return torch.autograd.grad(self.pulled(f, u, create_graph=True), u, v)[0]

    def gauss_newton(self, f, loss, v, twice=True):
        jv = self.pushed(f, v, twice)
        at = f.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(at), at, create_graph=True)
        (curved,) = torch.autograd.grad(slope, at, jv)
        return self.pulled(f, curved, retain_graph=True)

    def hessian(self, value, v):
        return self.pulled(self.pulled(value, create_graph=True), v, retain_graph=True)


def direction(count):
    return torch.randn(count, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def near(got, right):
    return float((got.double() - right).norm() / right.norm().clamp_min(1e-300)) < TOLERANCE


def outputs_in(out):
    """The outputs among what a model returns: a tensor, ``.logits`` or the only float tensor."""
    if isinstance(out, torch.Tensor):
        return out
    if getattr(out, "logits", None) is not None:
        return out.logits
    values = list(out.values()) if hasattr(out, "values") else list(out)
    floats = [t for t in values if isinstance(t, torch.Tensor) and t.is_floating_point()]
    return floats[0] if len(floats) == 1 and len(values) == 1 else None


@pytest.mark.parametrize("entry", CASES)
def test_outputs_as_they_are(entry):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages while they build and run
        case = entry.build()
        model, x = case.model.float(), case.inputs
        truth = Truth(model, x)
        f = outputs_in(truth.returned())
        if f is None:
            with pytest.raises(TypeError, match=r"^catapult_ext\.NTK: .*\.logits.*forward=.*got"):
                cx.NTK(model, x)
            return
        y = torch.randn(f.shape, generator=torch.Generator().manual_seed(2))
        operator = cx.GGN(model, "mse", (x, y))
        v = direction(operator.shape[0])
        right = truth.gauss_newton(f, lambda f: (f - y).square().mean(), v, case.hessian)
        assert near(operator @ v.float(), right)


def labelled(case):
    """Model and batch with mask and labels, as the documentation of transformers has them."""
    model, batch = (case.model, dict(case.inputs)) if case.labelled is None else case.labelled()
    model = model.float()
    named = inspect.signature(model.forward).parameters
    if "attention_mask" in named and "input_ids" in batch:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if "labels" not in batch and "labels" in named:
        with torch.no_grad():
            f = copy.deepcopy(model)(**batch).logits
        drawn = torch.randint(f.shape[-1], f.shape[:1], generator=torch.Generator().manual_seed(5))
        batch["labels"] = drawn if f.dim() == 2 else batch["input_ids"]
    return model, batch


def cross_entropy(f, y):
    """As the models compare them: one label a row, or the next one."""
    rows, flat = f.flatten(0, -2), y.flatten()
    yield nn.functional.cross_entropy(rows, flat)
    if y.dim() > 1:
        yield nn.functional.cross_entropy(f[:, :-1].flatten(0, 1), y[:, 1:].flatten())


@pytest.mark.parametrize("entry", LABELLED)
def test_labels_in_the_batch(entry):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = entry.build()
        model, batch = labelled(case)
        if "labels" not in batch:
            pytest.skip("the model takes no labels")
        truth = Truth(model, batch)
        out = truth.returned()
        v = direction(sum(p.numel() for p in truth.params))
        try:
            truth.pulled(out.loss, retain_graph=True)
        except RuntimeError as error:  # torch itself cannot train the model as it is
            pytest.skip(str(error)[:80])
        if case.hessian:
            operator = cx.Hessian(model, None, batch)
            assert operator.value == pytest.approx(out.loss.item(), rel=1e-4)
            assert near(operator @ v.float(), truth.hessian(out.loss, v))
        losses = list(cross_entropy(out.logits, batch["labels"]))
        own = [i for i, a in enumerate(losses) if a.item() == pytest.approx(out.loss.item(), 1e-6)]
        if not own:  # another loss than plain cross-entropy: said, with a way out
            with pytest.raises(ValueError, match=r"loss that the model returns.*forward="):
                cx.GGN(model, "cross_entropy", batch)
            return

        def loss(f):
            return list(cross_entropy(f, batch["labels"]))[own[0]]

        operator = cx.GGN(model, "cross_entropy", batch)
        assert near(operator @ v.float(), truth.gauss_newton(out.logits, loss, v))
