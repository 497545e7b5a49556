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
from catapult_ext.linops.engines.autograd import AutogradLinearization, TorchLinearization
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.by_samples import LinearizationBySamples
from catapult_ext.linops.engines.dense_chain import DenseChainLinearization
from catapult_ext.linops.engines.plan import Build, Plan, Planner, parse_budget
from catapult_ext.linops.model.channels_last import in_any_layout
from catapult_ext.linops.model.memory_meter import Meter, OverBudget
from catapult_ext.linops.model.policy import Policy
from catapult_ext.linops.model.snapshot import Hook, Inputs, Snapshot
from catapult_ext.linops.tracing.dense_chain import Chain, ChainTracer, plausible
from catapult_ext.linops.tracing.tangent_program import TangentTracer

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


def take_snapshot(model: nn.Module, x: Inputs, where: str, options: Options) -> Snapshot:
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
) -> Linearization:
    """Freeze ``model`` at its parameters on inputs ``x``, within a memory budget.

    Args:
        model: module; :class:`~catapult_ext.linops.model.snapshot.Snapshot` says what is refused.
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
    snapshot = take_snapshot(model, x, where, options)
    return in_any_layout(snapshot, lambda: _frozen(snapshot, options))


def _frozen(snapshot: Snapshot, options: Options) -> Linearization:
    engine = options.get("engine")
    planner = _planner(snapshot, options)
    plan: Plan | None = None
    if planned(options):
        plan = planner.plan()
        linearization = _planned(snapshot, plan, engine, options)
    else:
        linearization, plan = _guarded(snapshot, planner, engine, options)
    if plan is not None:
        linearization.columns = plan.columns
        linearization.workspace = min(linearization.workspace, max(plan.budget - plan.peak, 0))
        linearization.room = max(plan.budget - plan.kept, 0)
    linearization.budget = options.get("memory_budget")
    linearization.make_plan = lambda: (
        plan or _planner(snapshot, options, samples=snapshot.n_samples).plan()
    )
    return linearization


def planned(options: Options) -> bool:
    """Whether the caller asks for a plan before anything runs."""
    names = ("memory_budget", "samples_at_once", "columns_at_once")
    return any(options.get(name) is not None for name in names)


def _planner(snapshot: Snapshot, options: Options, samples: int | None = None) -> Planner:
    def build(part: Snapshot) -> tuple[Linearization, Callable[[], object]]:
        linearization = _engine(part, options.get("engine"), probe=True)
        if snapshot.where == "NTK":
            u = linearization.outputs.new_ones(linearization.rows, 1)
            return linearization, lambda: linearization.ntk(u)
        t = linearization.outputs.new_ones(linearization.n_params, 1)
        return linearization, lambda: linearization.vjp(linearization.jvp(t))

    return planner_of(snapshot, options, build, samples)


def planner_of(
    snapshot: Snapshot, options: Options, build: Build, samples: int | None = None
) -> Planner:
    """The planner of ``held`` under the caller's budget and chunks."""
    return Planner(
        snapshot,
        build,
        parse_budget(options.get("memory_budget"), snapshot.device, snapshot.where),
        samples or options.get("samples_at_once"),
        options.get("columns_at_once"),
    )


def _planned(snapshot: Snapshot, plan: Plan, engine: str | None, options: Options) -> Linearization:
    check = options.get("check", True)
    if plan.samples < plan.n_samples:
        return LinearizationBySamples(
            snapshot, plan.samples, lambda part: _engine(part, engine), check
        )
    return _checked(_engine(snapshot, engine), check)


def _guarded(
    snapshot: Snapshot, planner: Planner, engine: str | None, options: Options
) -> tuple[Linearization, Plan | None]:
    """Without a plan where all is small: the forward pass stops when it passes the budget."""
    snapshot.meter = Meter(snapshot.tensors(), planner.budget)
    try:
        linearization = _engine(snapshot, engine)
        graph = float(GRAPHS * snapshot.meter.live + 8 * snapshot.bytes)
        if isinstance(linearization, DenseChainLinearization):
            column = 2.0 * linearization.n_params * snapshot.itemsize
            graph = (
                snapshot.meter.live
                + 4 * snapshot.bytes
                + linearization.native_bytes(snapshot.n_samples)
            )
            linearization.columns = min(64, 1 + int(max(planner.budget - graph, 0) // column))
        if graph <= planner.budget:
            return _checked(linearization, options.get("check", True)), None
        del linearization
    except OverBudget:
        pass
    finally:
        snapshot.meter = None
    plan = planner.plan()
    return _planned(snapshot, plan, engine, options), plan


GRAPHS = 6  # a product keeps and needs at most so many times the graph of the forward pass


def _checked(linearization: Linearization, check: bool) -> Linearization:
    # a proven chain holds nothing but known functions of its inputs
    if check and linearization.engine != "layers":
        linearization.snapshot.check_repeats(linearization.outputs)
    return linearization


@contextmanager
def _both(*modes: AbstractContextManager[object]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


def _engine(snapshot: Snapshot, engine: str | None, probe: bool = False) -> Linearization:
    if engine == "linearize" and not probe:  # probed by autograd, which keeps as much
        return TorchLinearization(snapshot)
    if engine in ("linearize", "autograd"):
        return AutogradLinearization(snapshot)
    tangents = TangentTracer(list(snapshot.params.values()))
    outputs, chain, why = traced(snapshot, engine, tangents)
    if chain is not None:
        return DenseChainLinearization(snapshot, outputs, chain)
    linearization = AutogradLinearization(snapshot, outputs, tangents)
    linearization.why = why
    return linearization


def traced(
    snapshot: Snapshot, engine: str | None, tangents: TangentTracer | None = None
) -> tuple[Tensor, Chain | None, str]:
    """Outputs with graph, the chain if the model is one, and why it is not.

    ``tangents`` records the pass where it is no chain.  One forward pass, or two: where a call in
    place met a copy, or no module had told that it is no chain.

    Raises:
        ValueError: ``engine="layers"`` for a model that is no chain.
    """
    tracer = ChainTracer(snapshot.params)
    recorder = None if plausible(snapshot.model) else tangents  # dear where it is for nothing
    outputs = snapshot.forward(tracer if recorder is None else _both(tracer, recorder))
    raw = snapshot.take_raw_output()
    chain = tracer.result(raw)
    if chain is not None:
        return outputs, chain, ""
    v.require(
        engine is None,
        snapshot.where,
        "engine='layers' needs a chain of dense layers and element-wise activations",
        f"a model where {tracer.why}",
    )
    if tracer.altered or recorder is not tangents:  # a call in place was given a copy, or no record
        if tangents is not None:
            tangents.restart()
        outputs = snapshot.forward(tangents)
        raw = snapshot.take_raw_output()
    if tangents is not None:
        tangents.finish(raw)
    return outputs, None, f"not a chain of dense layers: {tracer.why}"
