"""Rows of the Jacobian from one small graph per sample, where the uses of parameters are unknown.

A backward pass through the graph of all samples costs N times as much as one through the graph of
the sample that its row belongs to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from catapult_ext._progress import report_share
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.plan import same
from catapult_ext.linops.model.memory_meter import LIMITS
from catapult_ext.linops.model.pass_context import frozen_context

Take = Callable[[int, Tensor], None]


def jacobian(linearization: Linearization) -> Tensor | None:
    """J (N*O, P); None where samples depend on each other."""
    o = linearization.n_outputs
    out = linearization.outputs.new_empty(linearization.rows, linearization.n_params)

    def take(n: int, rows: Tensor) -> None:
        out[n * o : (n + 1) * o] = rows

    return out if each_sample(linearization, take) else None


def diagonal(linearization: Linearization) -> Tensor | None:
    """Squared norms of the rows of J, (N*O,); None where samples depend on each other."""
    out = torch.empty_like(linearization.outputs)

    def take(n: int, rows: Tensor) -> None:
        out[n] = rows.square().sum(1)

    return out.reshape(-1) if each_sample(linearization, take) else None


def each_sample(linearization: Linearization, take: Take) -> bool:
    """Give the rows (O, P) of every sample to ``take``.

    Returns:
        Whether they are rows of J: every sample gives its outputs alone as well, and J'u from them
        is that of the whole graph, for a random u.
    """
    snapshot, n = linearization.snapshot, linearization.n_samples
    policy = snapshot.policy
    coupled = policy.batch_stats is not None or policy.dropout is not None or snapshot.coarse
    if n == 1 or coupled or n != snapshot.n_samples:
        return False
    leaves = list(snapshot.params.values())
    generator = torch.Generator().manual_seed(0)
    shape = linearization.outputs.shape
    u = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    u = u.to(linearization.outputs)
    pulled, terms = (u.new_zeros(linearization.n_params) for _ in range(2))
    for at in range(n):
        try:
            graph = snapshot.part(slice(at, at + 1)).forward()
        except LIMITS:
            raise
        except Exception:  # a model that needs all samples
            return False
        if not same(graph.detach(), linearization.outputs[at : at + 1]):
            return False
        with frozen_context():
            rows = torch.stack(
                [
                    snapshot.join(
                        torch.autograd.grad(f, leaves, retain_graph=True, allow_unused=True)
                    )
                    for f in graph[0]
                ]
            )
        take(at, rows)
        report_share(at + 1, n)
        pulled.addmv_(rows.T, u[at])
        terms.addmv_(rows.abs().T, u[at].abs())
    exact = linearization.vjp(u.view(-1, 1))[:, 0]
    bound = 1e3 * torch.finfo(u.dtype).eps * terms.norm()
    return bool((pulled - exact).norm() <= bound)
