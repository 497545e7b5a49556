"""A two-layer ReLU net and its Taylor models of first and second order at the start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from catapult_ext.data import Dataset
from catapult_ext.experiments.reproduce.outcome import Row
from catapult_ext.toy import neural_quadratic

MODELS = ("net", "quadratic", "linear")
EVERY = 5  # steps between two readings of the test loss


class _Model:
    """f = W^-1/2 v . relu(U x / sqrt(D)), or a Taylor model of it around (U0, v0).

    The quadratic model keeps the units' activation pattern of the start; in (U, v) it is bilinear,
    so that nothing else is dropped. The linear one also drops the product of the two moves.
    """

    def __init__(self, kind: str, U: Tensor, v: Tensor) -> None:
        self.kind, self.U0, self.v0 = kind, U, v
        self.U, self.v = U.clone(), v.clone()
        self.scale = len(v) ** -0.5

    def hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pattern and hidden units of the present U, both times W^-1/2; ``x`` is over sqrt(D)."""
        moved = x @ self.U.mT
        pattern = moved if self.kind == "net" else x @ self.U0.mT
        gate = (pattern >= 0).to(x.dtype) * self.scale
        return gate, gate * moved

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N,)."""
        gate, h = self.hidden(x)
        if self.kind == "linear":
            start = gate * (x @ self.U0.mT)
            return h @ self.v0 + start @ (self.v - self.v0)
        return h @ self.v

    def step(self, x: Tensor, y: Tensor, eta: float) -> float:
        """One step on half the squared error summed; returns the loss before it."""
        gate, h = self.hidden(x)
        if self.kind == "linear":
            start = gate * (x @ self.U0.mT)
            z = h @ self.v0 + start @ (self.v - self.v0) - y
            out, features = self.v0, start
        else:
            z = h @ self.v - y
            out, features = self.v, h
        for_U = (gate * z[:, None] * out).mT @ x
        for_v = features.mT @ z
        self.U, self.v = self.U - eta * for_U, self.v - eta * for_v
        return float(z.square().sum()) / 2


def _draw(width: int, inputs: int, seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    U = torch.randn(width, inputs, generator=draw, device="cpu")
    v = torch.randint(0, 2, (width,), generator=draw, device="cpu") * 2.0 - 1
    return U.to(like), v.to(like)


@torch.no_grad()
def compare(data: Dataset, width: int, seed: int, c: float, steps: int) -> dict[str, Any]:
    """Best mean test loss of all three models trained at c / lambda_0, and which diverged."""
    (x, y), (x_test, y_test) = data.train, data.test
    U, v = _draw(width, x.shape[1], seed, x)
    eta = c / float(torch.linalg.eigvalsh(neural_quadratic(U, v, x, y[:, 0]).kernel())[-1])
    x, x_test = (t / math.sqrt(t.shape[1]) for t in (x, x_test))
    found: dict[str, Any] = {}
    for kind in MODELS:
        model, best, diverged = _Model(kind, U, v), math.inf, False
        first = None
        for step in range(steps + 1):
            if step % EVERY == 0:
                tested = float((model.forward(x_test) - y_test[:, 0]).square().mean()) / 2
                best = min(best, tested) if math.isfinite(tested) else best
            value = model.step(x, y[:, 0], eta)
            first = value if first is None else first
            if not value <= 1e4 * width * first:
                diverged = True
                break
        found[kind], found[f"{kind}_diverged"] = best, diverged
    return found


@torch.no_grad()
def line_path(U: Tensor, v: Tensor, x: Tensor, y: Tensor, eta: float, steps: int) -> Row:
    """The net itself on one-dimensional inputs, seen along the kernel's first two directions."""
    kernel = neural_quadratic(U, v, x, y).kernel()
    top = torch.linalg.eigh(kernel).eigenvectors[:, -2:].flip(1)
    model = _Model("net", U, v)
    scaled = x / math.sqrt(x.shape[1])
    parts, bounded = [], True
    for _ in range(steps + 1):
        z = model.forward(scaled) - y
        parts.append((z @ top).square())
        if not float(z.square().sum()) < 1e12:
            bounded = False
            break
        model.step(scaled, y, eta)
    seen = torch.stack(parts)
    peaks = (seen.max(dim=0).values / seen[0]).tolist()
    after = neural_quadratic(model.U, model.v, x, y).kernel()
    drop = ((top.mT @ after) * top.mT).sum(dim=1) / ((top.mT @ kernel) * top.mT).sum(dim=1)
    return {"peak_1": peaks[0], "peak_2": peaks[1], "bounded": bounded, "ratio_1": None} | {
        "rest_change": None,
        "drop_1": float(drop[0]),
        "drop_2": float(drop[1]),
    }
