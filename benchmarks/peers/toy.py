"""Row: gradient descent of the two-layer linear model at 64 learning rates at once."""

from __future__ import annotations

from typing import Any

import torch
from jax_side import remote
from timing import Contender, Row
from torch import Tensor

from catapult_ext import ops
from catapult_ext.testing.toy_cases import ToyProblem, lean_torch_gd, toy_problem


def toy_sweep(steps: int = 100) -> Row:
    """Loss at every step; width 1024, 16 inputs, 32 samples, float32."""
    c = torch.linspace(0.5, 3.5, 64)
    sizes = {"width": 1024, "inputs": 16, "samples": 32}
    problem = toy_problem(c, **sizes, dtype=torch.float32)
    exact = ToyProblem(*(t.double() for t in problem))
    want = lean_torch_gd(ToyProblem(*(t.clone() for t in exact)), steps)
    u, v, x, y, eta = problem

    def fresh() -> ToyProblem:
        return ToyProblem(u.clone(), v.clone(), x, y, eta)

    compiled = torch.compile(lambda p: lean_torch_gd(p, steps))

    def reduced(_: int) -> Tensor:
        """The exact form whose state does not depend on the width, weights reduced included."""
        w, s, q = (v[:, None] @ u)[:, 0], u.mT @ u, v.square().sum(1)
        return ops.toy_gd_reduced(w, s, q, x, y, eta, float(u.shape[1]), steps).loss

    calls: dict[str, Any] = {
        "lean batched torch (bmm, baddbmm)": lambda _: lean_torch_gd(fresh(), steps),
        "lean batched torch, torch.compile": lambda _: compiled(fresh()),
    }
    arrays = {n: t.numpy() for n, t in zip(("u", "v", "x", "y", "eta"), problem, strict=True)}
    jax = [
        Contender(
            f"JAX {b} + scan", {"": remote("toy", batching=b, steps=steps, **arrays)}, remote=True
        )
        for b in ("vmap", "map")
    ]
    ours = [
        Contender("catapult_ext toy_gd", {"": lambda _: ops.toy_gd(*fresh(), steps).loss}),
        Contender("catapult_ext toy_gd_reduced", {"": reduced}),
    ]
    for mine in ours:
        mine.ours = True
    rest = [Contender(name, {"": call}) for name, call in calls.items()]

    def error(_: int, got: Any) -> float:
        got = torch.as_tensor(got).double()
        return float(((got - want).abs().amax(1) / want.amax(1)).max())

    words = f"toy sweep: 64 rates, width 1024, D = 16, N = 32, {steps} steps, loss at every step"
    return Row("toy-sweep", words, [*ours, *rest, *jax], error, 1e-3)


ROWS = {"toy-sweep": toy_sweep}
