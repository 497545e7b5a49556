"""A model frozen at its parameters on given inputs: Jacobian products from one forward pass.

Engines: ``layers`` (chains of dense layers, native products), ``linearize`` (torch.func.linearize
and a stored backward graph: cheapest products of any model, seconds of set-up), ``autograd``
(double backward on the stored graph).  ``engine=None`` takes ``layers`` where the model is proven
to be such a chain and ``autograd`` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, TypedDict

from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.linops.autograd import AutogradFrozen, LinearizeFrozen
from catapult_ext.linops.chain import Chain, ChainTracer, plausible
from catapult_ext.linops.chunks import ChunkedFrozen
from catapult_ext.linops.engine import Frozen
from catapult_ext.linops.layers import LayersFrozen
from catapult_ext.linops.meter import Meter, OverBudget
from catapult_ext.linops.plan import Build, Plan, Planner, parse_budget
from catapult_ext.linops.policy import Policy
from catapult_ext.linops.snapshot import Hook, Inputs, Snapshot
from catapult_ext.linops.tangents import TangentTracer

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
        memory_budget: bytes, or a text like ``"512 MiB"``, that the operator may take beside the
            model and data given to it; None: half of what is free.
        samples_at_once: samples frozen together; fewer than N are frozen anew for every product.
        columns_at_once: right-hand sides multiplied together.
    """

    engine: str | None
    params: str | Sequence[str] | None
    forward: Hook | None
    batch_stats: str | None
    dropout: str | None
    seed: int
    check: bool
    memory_budget: int | str | None
    samples_at_once: int | None
    columns_at_once: int | None


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
    """Freeze ``model`` at its parameters on inputs ``x``, within a memory budget.

    Args:
        model: module; see :class:`~catapult_ext.linops.snapshot.Snapshot` for what is refused.
        x: inputs, a tensor, tuple or mapping.
        where: the public function named in errors.
        **options: see :class:`Options`.

    Raises:
        ValueError: unknown engine, an engine that cannot handle the model, a budget that one sample
            exceeds, or samples that depend on each other and do not fit together.
    """
    engine = options.get("engine")
    known = engine is None or engine in ENGINES
    v.require(known, where, f"engine must be None or one of {ENGINES}", repr(engine))
    held = snapshot(model, x, where, options)
    planner = _planner(held, options)
    plan: Plan | None = None
    if planned(options):
        plan = planner.plan()
        frozen = _planned(held, plan, engine, options)
    else:
        frozen, plan = _guarded(held, planner, engine, options)
    if plan is not None:
        frozen.columns = plan.columns
        frozen.workspace = min(frozen.workspace, max(plan.budget - plan.peak, 0))
        frozen.room = max(plan.budget - plan.kept, 0)
    frozen.budget = options.get("memory_budget")
    frozen.make_plan = lambda: plan or _planner(held, options, samples=held.n_samples).plan()
    return frozen


def planned(options: Options) -> bool:
    """Whether the caller asks for a plan before anything runs."""
    names = ("memory_budget", "samples_at_once", "columns_at_once")
    return any(options.get(name) is not None for name in names)


def _planner(held: Snapshot, options: Options, samples: int | None = None) -> Planner:
    def build(part: Snapshot) -> tuple[Frozen, Callable[[], object]]:
        frozen = _engine(part, options.get("engine"), probe=True)
        if held.where == "NTK":
            u = frozen.outputs.new_ones(frozen.rows, 1)
            return frozen, lambda: frozen.ntk(u)
        t = frozen.outputs.new_ones(frozen.n_params, 1)
        return frozen, lambda: frozen.vjp(frozen.jvp(t))

    return planner_of(held, options, build, samples)


def planner_of(
    held: Snapshot, options: Options, build: Build, samples: int | None = None
) -> Planner:
    """The planner of ``held`` under the caller's budget and chunks."""
    return Planner(
        held,
        build,
        parse_budget(options.get("memory_budget"), held.device, held.where),
        samples or options.get("samples_at_once"),
        options.get("columns_at_once"),
    )


def _planned(held: Snapshot, plan: Plan, engine: str | None, options: Options) -> Frozen:
    check = options.get("check", True)
    if plan.samples < plan.n_samples:
        return ChunkedFrozen(held, plan.samples, lambda part: _engine(part, engine), check)
    return _checked(_engine(held, engine), check)


def _guarded(
    held: Snapshot, planner: Planner, engine: str | None, options: Options
) -> tuple[Frozen, Plan | None]:
    """Without a plan where all is small: the forward pass stops when it passes the budget."""
    held.meter = Meter(held.tensors(), planner.budget)
    try:
        frozen = _engine(held, engine)
        graph = float(GRAPHS * held.meter.live + 8 * held.bytes)
        if isinstance(frozen, LayersFrozen):
            column = 2.0 * frozen.n_params * held.itemsize
            graph = held.meter.live + 4 * held.bytes + frozen.native_bytes(held.n_samples)
            frozen.columns = min(64, 1 + int(max(planner.budget - graph, 0) // column))
        if graph <= planner.budget:
            return _checked(frozen, options.get("check", True)), None
        del frozen
    except OverBudget:
        pass
    finally:
        held.meter = None
    plan = planner.plan()
    return _planned(held, plan, engine, options), plan


GRAPHS = 6  # a product keeps and needs at most so many times the graph of the forward pass


def _checked(frozen: Frozen, check: bool) -> Frozen:
    # a proven chain holds nothing but known functions of its inputs
    if check and frozen.engine != "layers":
        frozen.snapshot.check_repeats(frozen.outputs)
    return frozen


@contextmanager
def _both(*modes: AbstractContextManager[object]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


def _engine(held: Snapshot, engine: str | None, probe: bool = False) -> Frozen:
    if engine == "linearize" and not probe:  # probed by autograd, which keeps as much
        return LinearizeFrozen(held)
    if engine in ("linearize", "autograd"):
        return AutogradFrozen(held)
    tangents = TangentTracer(list(held.params.values()))
    outputs, chain, why = traced(held, engine, tangents)
    if chain is not None:
        return LayersFrozen(held, outputs, chain)
    frozen = AutogradFrozen(held, outputs, tangents)
    frozen.why = why
    return frozen


def traced(
    held: Snapshot, engine: str | None, tangents: TangentTracer | None = None
) -> tuple[Tensor, Chain | None, str]:
    """Outputs with graph, the chain if the model is one, and why it is not.

    ``tangents`` records the pass where it is no chain.  One forward pass, or two: where a call in
    place met a copy, or no module had told that it is no chain.

    Raises:
        ValueError: ``engine="layers"`` for a model that is no chain.
    """
    tracer = ChainTracer(held.params)
    recorder = None if plausible(held.model) else tangents  # dear where it is for nothing
    outputs = held.forward(tracer if recorder is None else _both(tracer, recorder))
    raw = held.take_raw_output()
    chain = tracer.result(raw)
    if chain is not None:
        return outputs, chain, ""
    v.require(
        engine is None,
        held.where,
        "engine='layers' needs a chain of dense layers and element-wise activations",
        f"a model where {tracer.why}",
    )
    if tracer.altered or recorder is not tangents:  # a call in place was given a copy, or no record
        if tangents is not None:
            tangents.restart()
        outputs = held.forward(tangents)
        raw = held.take_raw_output()
    if tangents is not None:
        tangents.finish(raw)
    return outputs, None, f"not a chain of dense layers: {tracer.why}"
