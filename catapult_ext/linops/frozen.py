"""A model frozen at its parameters on given inputs: Jacobian products from one forward pass.

Engines: ``layers`` (chains of dense layers, native products), ``linearize`` (torch.func.linearize
and a stored backward graph: cheapest products of any model, seconds of set-up), ``autograd``
(double backward on the stored graph).  ``engine=None`` takes ``layers`` where the model is proven
to be such a chain and ``autograd`` elsewhere.
"""

from __future__ import annotations

from torch import nn

from catapult_ext import _validate as v
from catapult_ext.linops.autograd import AutogradFrozen, LinearizeFrozen
from catapult_ext.linops.chain import ChainTracer
from catapult_ext.linops.engine import Frozen
from catapult_ext.linops.layers import LayersFrozen
from catapult_ext.linops.snapshot import Inputs, Snapshot

ENGINES = ("layers", "linearize", "autograd")


def freeze(model: nn.Module, x: Inputs, *, engine: str | None = None, where: str = "NTK") -> Frozen:
    """Freeze ``model`` at its parameters on inputs ``x``.

    Args:
        model: module; see :class:`~catapult_ext.linops.snapshot.Snapshot` for what is refused.
        x: inputs, a tensor, tuple or mapping.
        engine: ``"layers"``, ``"linearize"``, ``"autograd"``, or None to choose.
        where: the public function named in errors.

    Raises:
        ValueError: unknown engine, or an engine that cannot handle the model.
    """
    known = engine is None or engine in ENGINES
    v.require(known, where, f"engine must be None or one of {ENGINES}", repr(engine))
    snapshot = Snapshot(model, x, where)
    if engine == "linearize":
        return LinearizeFrozen(snapshot)
    if engine == "autograd":
        return AutogradFrozen(snapshot)
    tracer = ChainTracer(snapshot.params)
    outputs = snapshot.forward(tracer)
    chain = tracer.result(snapshot.take_raw_output())
    if chain is not None:
        return LayersFrozen(snapshot, outputs, chain)
    v.require(
        engine is None,
        where,
        "engine='layers' needs a chain of dense layers and element-wise activations",
        f"a model where {tracer.why}",
    )
    return AutogradFrozen(snapshot, snapshot.forward() if tracer.altered else outputs)
