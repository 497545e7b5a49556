"""A proof by central differences that derivatives behind Python code are those of the function.

torch's own operations bring their own derivatives.  An autograd Function, a gradient hook or an
option that scales gradients says what its derivative is, and J' and J agree on whatever it says:
only the outputs themselves, at moved parameters, tell whether it is right.  Parameters are moved
that lie below such code, or that no gradient reaches, all with about the same effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.graphs import nodes_of

Blocks = list[Tensor]

# adjoints of solvers (equilibria, differential equations) are right to their own tolerances only
_FIRST, _SECOND = 3e-3, 1e-4  # relative differences that are let pass
_TRIES = 3  # a kink of the function between two points spoils one direction, not all
_WEAKEST = 1e-3  # effects of parameters are made equal down to this share of the largest


@dataclass(frozen=True)
class Suspects:
    """Python code in the graph of a forward pass.

    Attributes:
        names: names of autograd Functions, hooks and options, as an error shows them.
        below: positions of the parameters that reach the outputs through them, or not at all.
    """

    names: list[str]
    below: list[int]

    @property
    def text(self) -> str:
        """The names, shortened."""
        more = f" and {len(self.names) - 4} more" if len(self.names) > 4 else ""
        return ", ".join(self.names[:4]) + more


def suspects(snapshot: FixedModel, graph: Tensor, always: bool = False) -> Suspects:
    """Python code in ``graph``, made by the last forward pass of ``snapshot``.

    The graph is walked where that pass gave a reason, or ``always``.
    """
    seen = snapshot.observed
    if seen.plain and not always:
        return Suspects([], [])
    names = dict.fromkeys(seen.scaled)
    found: list[Any] = []
    for node in nodes_of([graph.grad_fn]):
        written = isinstance(node, torch.autograd.function.BackwardCFunction)
        if written and not getattr(node._forward_cls, "exact", False):
            name = type(node).__name__.removesuffix("Backward")
            hook = name == "BackwardHookFunction"
            names["a backward hook of a module" if hook else f"autograd Function {name}"] = None
            found.append(node)
    if seen.hooked:
        names["a gradient hook"] = None
        found += [t.grad_fn for t in seen.hooked if t.grad_fn is not None]
    if not names:
        return Suspects([], [])
    leaves = list(snapshot.params.values())
    if seen.scaled:
        return Suspects(list(names), list(range(len(leaves))))
    reached = {id(n.variable) for n in nodes_of([graph.grad_fn]) if hasattr(n, "variable")}
    through = {id(n.variable) for n in nodes_of(found) if hasattr(n, "variable")}
    through |= {id(t) for t in seen.hooked}
    below = [i for i, p in enumerate(leaves) if id(p) in through or id(p) not in reached]
    return Suspects(list(names), below)


def check_gradients(snapshot: FixedModel, graph: Tensor) -> None:
    """Raise ValueError where backward passes of ``graph`` give no derivative of the outputs.

    Cost: none without Python code in the graph; else a backward and four forward passes.
    """
    suspected = suspects(snapshot, graph)
    if not suspected.below:
        return
    leaves = list(snapshot.params.values())
    generator = torch.Generator().manual_seed(0)
    for _ in range(_TRIES):
        u = _normal(graph, generator)
        grads = torch.autograd.grad(graph, leaves, u, retain_graph=True, allow_unused=True)
        right = _filled(grads, leaves)
        d = _direction(snapshot, suspected.below, right, generator)

        def projected(blocks: Blocks, u: Tensor = u) -> Blocks:
            with snapshot.aside():
                return [(u.double() * _outputs(snapshot, blocks).detach().double()).sum()]

        coarse, fine = _differences(snapshot, d, projected)
        slope, found = sum(_dot(r, s) for r, s in zip(right, d, strict=True)), float(fine[0])
        parts = [_size(r) * _size(s) / r.numel() ** 0.5 for r, s in zip(right, d, strict=True)]
        scale = max(sum(p * p for p in parts) ** 0.5, abs(slope), abs(found))
        spread = 2 * float((fine[0] - coarse[0]).abs())
        rounding = 20 * snapshot.observed.eps * _size(u) * _size(graph) / _step(snapshot)
        smooth = spread <= max(0.1 * scale, rounding)  # a jump between two points spreads as well
        if smooth and abs(found - slope) <= _tolerance(snapshot, _FIRST) * scale + spread:
            return
    v.fail(
        snapshot.where,
        f"gradients of the model must be the derivatives of its outputs, through {suspected.text} "
        "as well (make its backward the derivative of its forward, or pass check=False to take J "
        "from backward passes, as training does)",
        f"{slope:.4g} by a backward pass and {found:.4g} by central differences",
    )


def check_second(
    snapshot: FixedModel,
    suspected: Suspects,
    gradient: Callable[[Blocks], Blocks],
    product: Callable[[Tensor], Tensor],
) -> None:
    """Raise ValueError if ``product`` is not the derivative of ``gradient``.

    Cost: a product and four gradients.

    Args:
        snapshot: the frozen model.
        suspected: Python code of the model that may have a wrong second derivative.
        gradient: maps blocks of parameters to blocks of the gradient.
        product: multiplies the second derivative by (P, 1).
    """
    if not suspected.below:
        return
    generator = torch.Generator().manual_seed(1)
    for _ in range(_TRIES):
        d = _direction(snapshot, suspected.below, None, generator)
        found = snapshot.split(product(snapshot.join(tuple(d)).unsqueeze(1))[:, 0])
        coarse, fine = _differences(snapshot, d, gradient)
        pairs = list(zip(found, coarse, fine, strict=True))
        largest = max(_size(two) for _, _, two in pairs)
        tolerance = _tolerance(snapshot, _SECOND)
        wrong = []
        for name, (a, one, two) in zip(snapshot.names, pairs, strict=True):
            size = max(_size(a), _size(two), 1e-2 * largest)
            if not _size(a - two) <= tolerance * size + 2 * _size(two - one):
                wrong.append(name)
        if not wrong:
            return
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    v.fail(
        snapshot.where,
        f"second derivatives must be those of the gradient, through {suspected.text} as well "
        "(write its backward with torch operations of what forward was given, keeping no "
        "derivative in ctx, or use plain operations; NTK and GGN need the first alone)",
        f"other rows by {', '.join(wrong[:3])}{more} than central differences of the gradient",
        RuntimeError,
    )


def _tolerance(snapshot: FixedModel, least: float) -> float:
    return max(least, 10 * snapshot.observed.eps**0.5)


def _step(snapshot: FixedModel) -> float:
    """Relative to the parameters: where rounding and curvature spoil a difference alike."""
    return min(0.05, snapshot.observed.eps ** (1 / 3))


def _size(t: Tensor) -> float:
    return float(t.detach().double().norm())


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _filled(grads: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> Blocks:
    """Gradients with zeros for parameters that have none."""
    return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, leaves, strict=True)]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu")
    return draw.to(like.detach())


def _direction(
    snapshot: FixedModel, below: list[int], right: Blocks | None, generator: torch.Generator
) -> Blocks:
    """A move of the parameters ``below``, of their own size, with about equal effects."""
    leaves = list(snapshot.params.values())
    out = [torch.zeros_like(p) for p in leaves]
    effects = {}
    for i in below:
        size = float(leaves[i].detach().double().square().mean()) ** 0.5
        out[i] = _normal(leaves[i], generator) * (size or 1e-2)
        if right is not None:
            n = max(1, leaves[i].numel())
            effects[i] = _size(right[i]) * _size(out[i]) / n**0.5
    seen = [e for e in effects.values() if e > 0]
    if not seen:
        return out
    least = max(min(seen), _WEAKEST * max(seen))
    return [o * min(1.0, least / effects[i]) if effects.get(i) else o for i, o in enumerate(out)]


def _differences(
    snapshot: FixedModel, d: Blocks, function: Callable[[Blocks], Blocks]
) -> tuple[Blocks, Blocks]:
    """Central differences of ``function`` along ``d`` with a step and with half of it."""
    at = [p.detach() for p in snapshot.params.values()]
    found = []
    for h in (_step(snapshot), _step(snapshot) / 2):
        ends = [
            function([(p + s * h * t).requires_grad_() for p, t in zip(at, d, strict=True)])
            for s in (1, -1)
        ]
        found.append([(a - b) / (2 * h) for a, b in zip(*ends, strict=True)])
    return found[0], found[1]


def _outputs(snapshot: FixedModel, blocks: Blocks) -> Tensor:
    """Outputs (N, O) at other parameters, with a graph, as the pass that is differentiated."""
    return snapshot.outputs(dict(zip(snapshot.names, blocks, strict=True)))


def gradient_of(
    snapshot: FixedModel, scalar: Callable[[Tensor], Tensor]
) -> Callable[[Blocks], Blocks]:
    """Blocks of the gradient of ``scalar`` of the outputs, at given blocks of parameters."""

    def gradient(blocks: Blocks) -> Blocks:
        with snapshot.aside():
            value = scalar(_outputs(snapshot, blocks))
            grads = torch.autograd.grad(value, blocks, allow_unused=True)
        return _filled(grads, blocks)

    return gradient
