"""Observables of the weights of a step: spectrum, sharpness, imbalance, projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catapult_ext import _validate
from catapult_ext.eig.batched import top_eigenvalues, top_eigenvectors
from catapult_ext.toy.network import Network
from catapult_ext.toy.problem import Data
from catapult_ext.toy.rules import Observe

OBSERVABLES = ("eigenvalues", "projected_loss", "sharpness", "imbalance", "step_curvature")


def check_observe(where: str, names: str | Sequence[str], k: int, network: Network) -> Observe:
    """Known names, whole k, and a sharpness only where it has its closed form."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        known = ", ".join(OBSERVABLES)
        _validate.require(
            name in OBSERVABLES, where, f"observe must name some of {known}", repr(name)
        )
    ok = network.linear or "sharpness" not in names
    _validate.require(ok, where, "sharpness needs the linear activation", network.phi.name)
    if not isinstance(k, int) or isinstance(k, bool):
        _validate.fail(where, "k must be an int", type(k).__name__, TypeError)
    _validate.require(k >= 1, where, "k must be >= 1", k)
    return Observe(names, k)


class Observer:
    """Measures the replicas that are still there, all in float64.

    Cost:
        Per replica and record: the kernel, 2 N^2 (D + H) flops (H hidden units, N D (N + D) if
        linear), and 9 N^3 for its eigenvalues, about 3 times that with eigenvectors; the sharpness
        the eigenvalues of 3 D + 1 dimensions; the curvature of the step two forward passes.
    """

    def __init__(self, observe: Observe, network: Network, data: Data) -> None:
        self.names, self.k = observe
        self.network = network
        self.x, self.y = data.x.double(), data.y.double()
        self.start: Tensor | None = None  # (R, N, k) top kernel eigenvectors at the first call

    def measure(self, U: Tensor, v: Tensor, eta: Tensor, alive: Tensor) -> dict[str, Tensor]:
        """The curvature and what was asked for: (A,) each, or (A, k)."""
        U, v = U.double(), v.double()
        kernel = self.network.kernel(U, v, self.x)
        if "projected_loss" in self.names and self.start is None:
            self.start = top_eigenvectors(kernel, self.k)
        values = top_eigenvalues(kernel, self.k if "eigenvalues" in self.names else 1)
        out = {"curvature": values[:, 0]}
        residual = self.network.run(U, v, self.x)[0] - self.y
        for name in self.names:
            if name == "eigenvalues":
                out[name] = values
            elif name == "projected_loss":
                assert self.start is not None
                parts = (residual[:, None, :] @ self.start[alive])[:, 0]
                out[name] = parts.square() / (2 * len(self.x))
            elif name == "sharpness":
                out[name] = linear_sharpness(U, v, self.x, residual, self.network.width)
            elif name == "imbalance":
                out[name] = U.square().sum((1, 2)) - v.square().sum(1)
            else:
                out[name] = self._step_curvature(U, v, residual, eta.double())
        return out

    def _step_curvature(self, U: Tensor, v: Tensor, residual: Tensor, eta: Tensor) -> Tensor:
        """2 / eta + 2 (L' - L) / |d|^2 along the step d = -eta gradient (arXiv 2604.20446).

        L' - L comes from the change of the outputs, so that no digits are lost at a small loss.
        """
        gradients = self.network.run(U, v, self.x)[1](residual / len(self.x))
        U, v = (
            w - eta.view(-1, *[1] * (w.dim() - 1)) * g
            for w, g in zip((U, v), gradients, strict=True)
        )
        change = self.network.run(U, v, self.x)[0] - (residual + self.y)
        gain = (change * (residual + change / 2)).mean(1)
        square = gradients[0].square().sum((1, 2)) + gradients[1].square().sum(1)
        return 2 / eta + 2 * gain / (eta.square() * square)


def linear_sharpness(U: Tensor, v: Tensor, x: Tensor, residual: Tensor, width: float) -> Tensor:
    """Top eigenvalue of the Hessian of 1/(2N) sum (f - y)^2 for the linear network, exactly.

    With the hidden space turned so that v = |v| e_0, the Hessian J'J / N + W^-1/2 [0, 1 x zeta; .]
    with zeta = X' r / N acts on 3 D + 1 directions: row 0 of U, the component along zeta of the D
    rows after it, and v. Elsewhere its eigenvalues are 0 and +-|zeta| / sqrt(W), which are no
    larger. For one sample it is lambda/2 + sqrt(lambda^2/4 + |x|^2 (2 r f + r^2) / W).

    Args:
        U: (A, H, D) rows, as many as the network has or turned into D + 1.
        v: (A, H).
        x: (N, D).
        residual: (A, N), f - y.
        width: W.

    Returns:
        (A,).

    Cost:
        9 (3 D + 1)^3 flops per replica.
    """
    (samples, inputs), scale = x.shape, width**-0.5
    rows = torch.linalg.qr(torch.cat([v[:, :, None], U], 2), mode="r").R
    hidden = rows.shape[1]
    top, turned = rows[:, :1, :1], rows[:, :, 1:]
    zeta = residual @ x / samples
    quiet = x.new_zeros(len(U), samples, hidden - 1)
    J = scale * torch.cat([top * x, quiet, x @ turned.mT], 2)
    H = J.mT @ J / samples
    first = inputs + hidden - 1  # where v begins
    H[:, :inputs, first] += scale * zeta
    H[:, first, :inputs] += scale * zeta
    pairs = torch.arange(hidden - 1, device=x.device)
    for row, column in ((inputs, first + 1), (first + 1, inputs)):
        H[:, row + pairs, column + pairs] += scale * zeta.norm(dim=1, keepdim=True)
    return top_eigenvalues(H)[:, 0]
