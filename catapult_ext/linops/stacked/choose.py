"""Which way R models are multiplied: all at once where that is proven to be right, else a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from catapult_ext import _validate as v
from catapult_ext._model_call import call_model, output_tensor
from catapult_ext._module_copy import own_copy
from catapult_ext.linops.engines.base import GRAPHS
from catapult_ext.linops.engines.choose import Options, take_snapshot
from catapult_ext.linops.engines.plan import parse_budget
from catapult_ext.linops.model.fixed_model import Probe
from catapult_ext.linops.model.inputs import HALF, wide
from catapult_ext.linops.model.memory_meter import LIMITS, Meter
from catapult_ext.linops.model.policy import repeats
from catapult_ext.linops.model.snapshot import Snapshot
from catapult_ext.linops.stacked.base import StackedProducts
from catapult_ext.linops.stacked.chain import ChainParts, StackedChain, parts_of, stacked_chain
from catapult_ext.linops.stacked.jacobian_products import WithoutBad
from catapult_ext.linops.stacked.linearization import StackedLinearization
from catapult_ext.linops.stacked.replicas import Replicas
from catapult_ext.linops.stacked.vectorized import StackedAutograd, adjoint
from catapult_ext.linops.tracing.dense_chain import ChainTracer

_TAKEN = {"params", "check", "copy", "seed"}  # options that products of all at once know
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
LAYER_FLOPS = (
    4e6  # of a layer in one forward pass: beyond, a loop is faster (bench_stacked_operators)
)
_TRUSTED = ("torch.nn.", "catapult_ext.models.")  # modules that branch on no values


def _trusted(model: nn.Module) -> bool:
    """Whether all modules are known to branch on no values and to keep no state."""
    return all(f"{type(part).__module__}.".startswith(_TRUSTED) for part in model.modules())


def _wide_copy(model: nn.Module) -> nn.Module:
    """A copy that holds half precision in float32, as snapshots do."""
    copied = own_copy(model)
    held = [*copied.parameters(), *copied.buffers()]
    return copied.float() if any(t.dtype in HALF for t in held) else copied


class NotStacked(Exception):
    """The models cannot be multiplied at once; says why."""


@dataclass(frozen=True)
class Stack:
    """R models at once.

    Attributes:
        linearization: of all of them.
        bad: (R,) which of them have non-finite outputs, or None where none has.
    """

    linearization: StackedLinearization
    bad: Tensor | None

    def of(self, products: StackedProducts) -> StackedProducts:
        """``products`` of the linearization, NaN where the outputs are not finite."""
        return products if self.bad is None else WithoutBad(products, self.bad)


def stacked(
    replicas: Replicas,
    inputs: Sequence[Any],
    shared: bool,
    where: str,
    probe: Probe,
    options: Options,
) -> Stack:
    """The models as one linearization.

    Args:
        replicas: the models.
        inputs: of each.
        shared: whether all inputs are those of the first.
        where: the public function named in errors.
        probe: what the products are for.
        options: options of the operator.

    Raises:
        NotStacked: the models have to be taken one by one.
        TypeError, ValueError: what single operators refuse.
    """
    _require_alike(replicas, inputs, options)
    r, snapshot, parts = _traced(replicas, inputs, where, probe, options)
    linearization: StackedLinearization
    if parts is not None:
        first = _first_inputs(replicas, inputs, shared, snapshot, parts)
        bends = probe == "hessian"
        linearization = stacked_chain(parts, snapshot, replicas.stacked, first, bends)
    else:
        v.require(options.get("engine") is None, where, "models must be chains", "others")
        linearization = vectorized(replicas, inputs, shared, snapshot, options)
    finite = torch.isfinite(linearization.outputs).flatten(1).all(1)
    if options.get("check", True):
        _check_courses(linearization, finite, replicas, inputs, r)
        if isinstance(linearization, StackedAutograd) and not adjoint(linearization, finite):
            raise NotStacked("a second derivative that torch.func.vmap loses")
    return Stack(linearization, None if bool(finite.all()) else ~finite)


def _require_alike(replicas: Replicas, inputs: Sequence[Any], options: Options) -> None:
    """Raise NotStacked unless the models differ in the values of their tensors alone."""
    asked = {k for k, value in options.items() if value is not None} - _TAKEN
    if not options.get("graphs"):
        asked.discard("graphs")
    if options.get("engine") == "dense-chain":
        asked.discard("engine")
    if asked:
        raise NotStacked(f"the option {min(asked)}")
    if not options.get("copy", True):
        raise NotStacked("the option copy")
    dense = (isinstance(x, Tensor) and x.layout == torch.strided for x in inputs)
    if not all(dense) or inputs[0].is_nested:
        raise NotStacked("inputs that are no dense tensor")
    different = replicas.difference()
    if different:
        raise NotStacked(different)
    if any(getattr(part, name, None) for part in replicas[0].modules() for name in _HOOKS):
        raise NotStacked("a hook")


def _traced(
    replicas: Replicas, inputs: Sequence[Any], where: str, probe: Probe, options: Options
) -> tuple[int, Snapshot, ChainParts | None]:
    """The first replica with finite outputs, and its chain where it is one."""
    error: v.NotFinite | None = None
    for r, model in enumerate(replicas):
        try:
            snapshot = take_snapshot(model, inputs[r], where, options, probe)
            tracer = ChainTracer(snapshot.params)
            snapshot.forward(tracer)
        except v.NotFinite as found:
            error = error or found
            continue
        chain = tracer.result(snapshot.take_raw_output())
        return r, snapshot, None if chain is None else parts_of(chain, snapshot)
    assert error is not None
    raise error


class _Reached(Exception):
    """The inputs of the first layer are known."""


class _FirstInput(TorchFunctionMode):
    """Stops a forward pass at the first layer of its chain, ``before`` layers of constants on."""

    input: Tensor

    def __init__(self, before: int) -> None:
        super().__init__()
        self._before = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear and torch.is_grad_enabled():  # as the trace counts
            if self._before == 0:
                self.input = args[0] if args else (kwargs or {})["input"]
                raise _Reached
            self._before -= 1
        return func(*args, **(kwargs or {}))


def _first_inputs(
    replicas: Replicas, inputs: Sequence[Any], shared: bool, snapshot: Snapshot, parts: ChainParts
) -> Tensor:
    """Inputs of each model's first layer, (R, N, d): what it makes of its data and constants."""
    one = parts.chain.layers[0].input.detach()
    if shared and not snapshot.constants:
        return one.expand(len(replicas), *one.shape)
    found = []
    half = any(t.dtype in HALF for t in replicas.held(0))
    taken = half or not _trusted(replicas[0])
    for own, x in zip(replicas, inputs, strict=True):
        model = _wide_copy(own) if taken else own
        watcher = _FirstInput(parts.chain.before)
        try:
            with watcher, torch.enable_grad():
                call_model(model, wide(x))
        except _Reached:
            found.append(watcher.input.detach().to(one.dtype))
    if len(found) < len(replicas) or any(t.shape != one.shape for t in found):
        raise NotStacked("first layers that are not alike")
    return torch.stack(found)


def vectorized(
    replicas: Replicas,
    inputs: Sequence[Tensor],
    shared: bool,
    snapshot: Snapshot,
    options: Options,
) -> StackedAutograd:
    """The models under ``torch.func.vmap``, where that is faster than a loop.

    Raises:
        NotStacked: large layers, graphs that do not fit into memory, or what vmap does not take.
        ValueError: what single operators refuse.
    """
    with Meter(snapshot.tensors(), None, work=True) as meter:
        outputs = snapshot.forward()
        used = meter.phase()
    weights = sum(p.dim() > 1 for p in snapshot.params.values())
    if used.flops > LAYER_FLOPS * max(weights, 1):
        raise NotStacked(f"{used.flops / max(weights, 1) / 1e6:.3g} MFLOP a layer")
    if len(replicas) * GRAPHS * used.kept > parse_budget(None, snapshot.device, snapshot.where):
        raise NotStacked("graphs that do not fit into memory together")
    kept = snapshot.observed.plain and not snapshot.writes_parameters
    if not kept or any(t.is_complex() for t in replicas.held(0)):
        raise NotStacked("Python code or complex numbers in the forward pass")
    if options.get("check", True):
        snapshot.check_repeats(outputs)
    model, shape = own_copy(replicas[0]), outputs.shape

    def call(params: Mapping[str, Tensor], constants: Mapping[str, Tensor], x: Tensor) -> Tensor:
        returned = torch.func.functional_call(model, {**params, **constants}, (x,))
        return output_tensor(returned, snapshot.where).reshape(shape)

    own = {name: replicas.stacked(name) for name in (*snapshot.params, *snapshot.constants)}
    try:
        return StackedAutograd(
            call,
            {name: own[name] for name in snapshot.params},
            {name: own[name] for name in snapshot.constants},
            wide(inputs[0].detach().clone() if shared else torch.stack(list(inputs))),
            shared,
            snapshot.output_shape,
            snapshot.observed.eps,
        )
    except LIMITS:
        raise
    except Exception as error:  # vmap refuses what has no rule or depends on values
        raise NotStacked(f"torch.func.vmap: {str(error).splitlines()[0][:80]}") from error


def _check_courses(
    linearization: StackedLinearization,
    finite: Tensor,
    replicas: Replicas,
    inputs: Sequence[Tensor],
    traced: int,
) -> None:
    """Raise NotStacked unless the outputs are the models' own.

    Modules of torch and of this package branch on no values: there the pass that was traced, or
    run under vmap, stands for all, and one model shows that it does.
    """
    outputs = linearization.outputs
    which = [] if isinstance(linearization, StackedChain) else [traced]
    if not _trusted(replicas[0]):
        which = list(range(len(replicas)))
    for r in which:
        if not bool(finite[r]):
            continue
        with torch.no_grad():
            again = output_tensor(call_model(_wide_copy(replicas[r]), wide(inputs[r])), "NTK")
        step = max(1, outputs.shape[1] // 8)
        own = again.reshape(outputs[r].shape).to(outputs.dtype)
        if not repeats(own[::step], outputs[r][::step]):
            raise NotStacked(f"another course of models[{r}]")
