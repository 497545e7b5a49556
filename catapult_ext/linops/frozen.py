"""A model frozen at its parameters on given inputs: Jacobian products from one forward pass.

Engines: ``layers`` (chains of dense layers, native products), ``linearize`` (torch.func.linearize
and a stored backward graph: cheapest products of any model, seconds of set-up), ``autograd``
(double backward on the stored graph).  ``engine=None`` takes ``layers`` where the model is proven
to be such a chain and ``autograd`` elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from torch import nn

from catapult_ext import _validate as v
from catapult_ext.linops.autograd import AutogradFrozen, LinearizeFrozen
from catapult_ext.linops.chain import ChainTracer
from catapult_ext.linops.engine import Frozen
from catapult_ext.linops.layers import LayersFrozen
from catapult_ext.linops.policy import Policy
from catapult_ext.linops.snapshot import Hook, Inputs, Snapshot

if TYPE_CHECKING:
    from typing_extensions import Unpack

ENGINES = ("layers", "linearize", "autograd")


class Options(TypedDict, total=False):
    """Keywords of every operator; docs/operators.md explains them.

    Attributes:
        engine: ``"layers"``, ``"linearize"``, ``"autograd"``, or None to choose.
        params: names or ``fnmatch`` patterns of the parameters to differentiate by; None: all.
        forward: ``forward(model, x)`` picks or makes the outputs (N, O); None calls the model.
        batch_stats: ``"frozen"`` or ``"coupled"`` for batch norms on batch statistics.
        dropout: ``"fixed"`` for one fixed draw of every random number.
        seed: of that draw.
        check: compare two forward passes (one more forward); on by default.
    """

    engine: str | None
    params: str | Sequence[str] | None
    forward: Hook | None
    batch_stats: str | None
    dropout: str | None
    seed: int
    check: bool


def snapshot(model: nn.Module, x: Inputs, where: str, options: Options) -> Snapshot:
    """The checked copy of model and inputs that ``options`` describe."""
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        v.fail(where, f"options are {', '.join(Options.__annotations__)}", unknown, TypeError)
    policy = Policy(options.get("batch_stats"), options.get("dropout"), options.get("seed", 0))
    return Snapshot(
        model,
        x,
        where,
        params=options.get("params"),
        forward=options.get("forward"),
        policy=policy,
    )


def freeze(
    model: nn.Module, x: Inputs, *, where: str = "NTK", **options: Unpack[Options]
) -> Frozen:
    """Freeze ``model`` at its parameters on inputs ``x``.

    Args:
        model: module; see :class:`~catapult_ext.linops.snapshot.Snapshot` for what is refused.
        x: inputs, a tensor, tuple or mapping.
        where: the public function named in errors.
        **options: see :class:`Options`.

    Raises:
        ValueError: unknown engine, or an engine that cannot handle the model.
    """
    engine = options.get("engine")
    known = engine is None or engine in ENGINES
    v.require(known, where, f"engine must be None or one of {ENGINES}", repr(engine))
    held = snapshot(model, x, where, options)
    frozen = _engine(held, engine)
    # a proven chain holds nothing but known functions of its inputs
    if options.get("check", True) and frozen.engine != "layers":
        held.check_repeats(frozen.outputs)
    return frozen


def _engine(held: Snapshot, engine: str | None) -> Frozen:
    if engine == "linearize":
        return LinearizeFrozen(held)
    if engine == "autograd":
        return AutogradFrozen(held)
    tracer = ChainTracer(held.params)
    outputs = held.forward(tracer)
    chain = tracer.result(held.take_raw_output())
    if chain is not None:
        return LayersFrozen(held, outputs, chain)
    v.require(
        engine is None,
        held.where,
        "engine='layers' needs a chain of dense layers and element-wise activations",
        f"a model where {tracer.why}",
    )
    return AutogradFrozen(held, held.forward() if tracer.altered else outputs)
