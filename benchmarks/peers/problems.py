"""Models, data and float64 oracles, from torch alone: nothing here is what is being raced."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse.linalg as sl
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

import catapult_ext as cx


def mlp(outputs: int, width: int = 512, inputs: int = 784, depth: int = 3, seed: int = 0) -> Any:
    """inputs-width x depth-outputs, ReLU, no bias."""
    return cx.models.fully_connected(
        inputs, outputs, width=width, depth=depth, parameterisation="standard", seed=seed
    ).requires_grad_()


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_double(model: nn.Module) -> nn.Module:
    """A float64 copy."""
    return copy.deepcopy(model).double()


def ntk_product(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """V (N*O, K) -> Theta V by torch.func vjp and jvp, column by column."""
    params = {k: p.detach() for k, p in model.named_parameters()}

    def outputs(p: dict[str, Tensor]) -> Tensor:
        return functional_call(model, p, (x,))

    def product(v: Tensor) -> Tensor:
        shape = outputs(params).shape
        return torch.stack([one(u.reshape(shape)) for u in v.reshape(len(v), -1).T], 1)

    def one(u: Tensor) -> Tensor:
        _, back = vjp(outputs, params)
        return jvp(outputs, (params,), back(u))[1].reshape(-1)

    return product


def hessian_product(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[..., Tensor]
) -> tuple[int, Callable[[Tensor], Tensor]]:
    """(P, v (P, 1) -> H v) by double backward."""
    params = [p for p in model.parameters() if p.requires_grad]
    sizes = [p.numel() for p in params]
    gradient = torch.autograd.grad(loss(model(x), y), params, create_graph=True)

    def product(v: Tensor) -> Tensor:
        parts = [t.view_as(p) for t, p in zip(v.T.reshape(-1).split(sizes), params, strict=True)]
        moved = torch.autograd.grad(gradient, params, parts, retain_graph=True)
        return torch.cat([m.reshape(-1) for m in moved])

    return sum(sizes), product


def top(n: int, product: Callable[[Tensor], Tensor]) -> float:
    """Largest eigenvalue in float64 by ARPACK to 1e-9."""

    def matvec(v: Any) -> Any:
        return product(torch.from_numpy(np.ascontiguousarray(v.reshape(-1, 1)))).reshape(-1).numpy()

    a = sl.LinearOperator((n, n), matvec=matvec, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    return float(sl.eigsh(a, 1, which="LA", tol=1e-9, v0=start, return_eigenvectors=False)[0])


def cached(key: str, compute: Callable[[], list[float]]) -> list[float]:
    """``compute()``, kept in the folder PEERS_CACHE where that is set: oracles take minutes."""
    folder = os.environ.get("PEERS_CACHE")
    if not folder:
        return compute()
    file = Path(folder) / f"{key}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(compute()))
    return json.loads(file.read_text())


class KernelOracle:
    """Theta V of four random vectors in float64; the error of any full kernel in flat layout."""

    def __init__(self, model: nn.Module, x: Tensor, outputs: int, columns: int = 4) -> None:
        self.v = gaussian(len(x) * outputs, columns, seed=9).double()
        self.want = ntk_product(as_double(model), x.double())(self.v)

    def error(self, kernel: Tensor) -> float:
        """Relative, in the Frobenius norm."""
        return self.product_error(torch.as_tensor(np.asarray(kernel)).double() @ self.v)

    def product_error(self, got: Tensor) -> float:
        """The same for a product with ``v``."""
        return ((got.double() - self.want).norm() / self.want.norm()).item()
