"""Products in float32, whatever precision a user allows float32 arithmetic elsewhere."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext import _autocast
from catapult_ext._autocast import ieee

BACKENDS = torch.backends
KINDS = {
    "cudnn.conv": lambda: BACKENDS.cudnn.conv,
    "cudnn.rnn": lambda: BACKENDS.cudnn.rnn,
    "cuda.matmul": lambda: BACKENDS.cuda.matmul,
    "mkldnn.conv": lambda: BACKENDS.mkldnn.conv,
    "mkldnn.rnn": lambda: BACKENDS.mkldnn.rnn,
    "mkldnn.matmul": lambda: BACKENDS.mkldnn.matmul,
}
NEW = hasattr(BACKENDS.cuda.matmul, "fp32_precision")
needs_new = pytest.mark.skipif(not NEW, reason="torch before 2.9 has the old switches alone")


def switch(owner, name, value):
    return lambda: setattr(owner, name, value)


# every setting that a user can have made, by the old switches and by the new ones
SETTINGS = {
    "default": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "matmul allowed": switch(BACKENDS.cuda.matmul, "allow_tf32", True),
    "convolutions refused": switch(BACKENDS.cudnn, "allow_tf32", False),
    "all tf32": switch(BACKENDS, "fp32_precision", "tf32"),
    "all ieee": switch(BACKENDS, "fp32_precision", "ieee"),
    "cudnn ieee": switch(BACKENDS.cudnn, "fp32_precision", "ieee"),
    "mkldnn bf16": switch(BACKENDS.mkldnn, "fp32_precision", "bf16"),
    "one convolution": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "one matmul": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "one of the CPU": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
}
OLD = ("default", "high", "medium", "matmul allowed", "convolutions refused")


def read(get):
    try:
        return get()
    except RuntimeError:
        return "a mixture"


def new_state():
    return {name: kind().fp32_precision for name, kind in KINDS.items()} if NEW else {}


def state():
    old = {
        "cudnn.allow_tf32": read(lambda: BACKENDS.cudnn.allow_tf32),
        "matmul.allow_tf32": read(lambda: BACKENDS.cuda.matmul.allow_tf32),
        "matmul_precision": read(torch.get_float32_matmul_precision),
    }
    return old | new_state()


def tf32_allowed():
    """Whether a convolution would be rounded here."""
    return BACKENDS.cudnn.conv.fp32_precision == "tf32" if NEW else BACKENDS.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def restored():
    """The settings as torch starts with them, before and after."""
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    if NEW:
        for owner in (BACKENDS, BACKENDS.cudnn, BACKENDS.mkldnn):
            owner.fp32_precision = "none"
        for name, kind in KINDS.items():
            kind().fp32_precision = "tf32" if name.startswith("cudnn") else "none"


@pytest.fixture(params=SETTINGS)
def setting(request):
    if request.param not in OLD and not NEW:
        pytest.skip("torch before 2.9 has the old switches alone")
    SETTINGS[request.param]()
    return request.param


def test_every_switch_is_off_inside_and_as_it_was_after(setting):
    before = state()
    with ieee():
        inside = state()
        with ieee():
            assert state() == inside
        assert state() == inside
    assert state() == before
    assert set(new_state()) <= set(inside)
    assert all(inside[name] == "ieee" for name in new_state())
    if setting != "one convolution":  # which makes a mixture of old and new already
        assert inside["cudnn.allow_tf32"] is False
        with ieee(), BACKENDS.cudnn.flags(enabled=False):  # reads the old switch
            pass


@needs_new
def test_what_is_inherited_is_inherited_after():
    BACKENDS.fp32_precision = "tf32"
    with ieee():
        pass
    BACKENDS.fp32_precision = "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == "ieee"


@pytest.mark.parametrize("fails", [False, True])
def test_the_last_of_several_threads_restores(fails):
    before, inside = state(), []
    entered, leave = threading.Barrier(3), threading.Event()

    def work(last):
        with contextlib.suppress(ZeroDivisionError), ieee():
            entered.wait()
            if last:
                leave.wait()
            if fails:
                raise ZeroDivisionError

    threads = [threading.Thread(target=work, args=(last,)) for last in (False, True)]
    for thread in threads:
        thread.start()
    entered.wait()
    threads[0].join()
    inside.append(state())
    leave.set()
    threads[1].join()
    assert state() == before
    assert inside[0] != before
    assert all(inside[0][name] == "ieee" for name in new_state())


SEEN = {"forward": [], "backward": []}  # settings, of all passes of a test


class Note(torch.autograd.Function):
    """The identity, which notes the settings that its passes see."""

    @staticmethod
    def forward(ctx, x):
        SEEN["forward"].append(state())
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        SEEN["backward"].append(state())
        return g.clone()


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return Note.apply(self.inner(x)).flatten(1)[:, :3]


def solve(op):
    return cx.eigsh(op, tol=0.1)


DOORS = {
    "NTK": lambda m, x, y: solve(cx.NTK(m, x)),
    "dense": lambda m, x, y: cx.NTK(m, x).dense(),
    "diagonal": lambda m, x, y: cx.NTK(m, x).diagonal(),
    "GGN": lambda m, x, y: solve(cx.GGN(m, "half_mse", (x, y))),
    "Hessian": lambda m, x, y: solve(cx.Hessian(m, "half_mse", (x, y))),
    "Jacobian": lambda m, x, y: cx.Jacobian(m, x) @ torch.ones(20),
    "streamed": lambda m, x, y: solve(cx.StreamedGGN(m, "half_mse", [(x, y)])),
    "trace": lambda m, x, y: cx.hutchinson_trace(cx.GGN(m, "half_mse", (x, y))),
    "solve": lambda m, x, y: cx.solve(cx.NTK(m, x), torch.ones(12), shift=1.0),
    "window": lambda m, x, y: cx.learning_rate_window(m, "half_mse", (x, y)),
}


def check_passes(door):
    torch.manual_seed(0)
    model, x, y = Recorder(), torch.randn(4, 1, 5, 5), torch.randn(4, 3)
    before = state()
    for passes in SEEN.values():
        passes.clear()
    DOORS[door](model, x, y)
    assert state() == before
    assert SEEN["forward"]
    assert SEEN["backward"]
    for name in new_state() or ("cudnn.allow_tf32",):
        kinds = {s[name] for s in SEEN["forward"] + SEEN["backward"]}
        assert kinds == {"ieee" if NEW else False}


def test_passes_see_ieee_under_every_setting(setting):
    check_passes("GGN")


@pytest.mark.parametrize("door", [door for door in DOORS if door != "GGN"])
def test_passes_see_ieee_at_every_door(door):
    torch.set_float32_matmul_precision("medium")
    check_passes(door)


def rounded(t):
    """To 10 bits of mantissa, where the settings allow it, as tensor cores do."""
    if not tf32_allowed() or t.dtype != torch.float32:
        return t
    bits = t.detach().contiguous().view(torch.int32)
    near = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return t + (near - t).detach()


class Tf32Convolution(nn.Conv2d):
    """A convolution as cuDNN makes it on a GPU: its operands have 10 bits."""

    def forward(self, x):
        return nn.functional.conv2d(rounded(x), rounded(self.weight), self.bias)


@pytest.mark.parametrize("honest", [True, False])
def test_the_error_of_a_convolutional_ggn_holds_where_tf32_is_allowed(monkeypatch, honest):
    """Without the context the reported error is below the true one."""
    if not honest:
        monkeypatch.setattr(_autocast, "ieee", contextlib.nullcontext)
    torch.manual_seed(0)
    model = nn.Sequential(
        Tf32Convolution(2, 6, 3),
        nn.Tanh(),
        Tf32Convolution(6, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    x, y = torch.randn(6, 2, 6, 6), torch.randn(6, 3)
    assert tf32_allowed()
    found = cx.eigsh(cx.GGN(model, "half_mse", (x, y)), tol=1e-7)
    true = cx.GGN(model.double(), "half_mse", (x.double(), y.double())).dense()
    top = torch.linalg.eigvalsh(true)[-1]
    error = (found.eigenvalues[0].double() - top).abs()
    assert bool(error <= found.errors[0]) is honest
    if not honest:
        assert error > 5 * found.errors[0]


DTYPES = []


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 5)

    def forward(self, x):
        out = self.inner(x)
        DTYPES.append(out.dtype)
        return out


def test_precision_that_the_user_asks_for_stays():
    """``coarse()`` multiplies in bfloat16 all the same."""
    torch.manual_seed(0)
    DTYPES.clear()
    kernel = cx.NTK(Plain(), torch.randn(4, 6), engine="autograd")
    kernel.coarse() @ torch.ones(20)
    kernel @ torch.ones(20)
    assert torch.bfloat16 in DTYPES
    assert torch.float32 in DTYPES
