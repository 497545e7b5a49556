"""The table of engines, and the linearization of a model within a memory budget.

``engine=None`` takes the first engine of the table that accepts the model by a recorded forward
pass: ``dense-chain`` where the model is proven to be such a chain, and ``autograd`` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import torch
from torch import nn

from catapult_ext import _validate as v
from catapult_ext._deprecated import warn_renamed
from catapult_ext._model_call import output_tensor, own_loss
from catapult_ext.linops.engines.autograd import AutogradLinearization, TorchLinearization
from catapult_ext.linops.engines.base import Allowance, ForwardPass, Linearization
from catapult_ext.linops.engines.by_samples import LinearizationBySamples
from catapult_ext.linops.engines.dense_chain import DenseChainLinearization
from catapult_ext.linops.engines.loss_curvature import is_known
from catapult_ext.linops.engines.mixed_precision import LinearizationInInt16, format_of
from catapult_ext.linops.engines.plan import Plan, parse_budget
from catapult_ext.linops.engines.planner import Planner
from catapult_ext.linops.model.captured import CapturedProducts
from catapult_ext.linops.model.channels_last import in_any_layout
from catapult_ext.linops.model.fixed_model import FixedModel, Probe
from catapult_ext.linops.model.memory_meter import OverBudget
from catapult_ext.linops.model.policy import BatchStats, Dropout, Policy
from catapult_ext.linops.model.snapshot import Hook, Inputs, Snapshot
from catapult_ext.linops.model.state import Chosen
from catapult_ext.losses import OWN_LOSS, Loss

if TYPE_CHECKING:
    from typing_extensions import Unpack

# The table: one line for each engine, in the order in which engine=None tries them.
ENGINES: dict[str, type[Linearization]] = {
    "dense-chain": DenseChainLinearization,
    "linearize": TorchLinearization,
    "autograd": AutogradLinearization,
}
GENERAL = AutogradLinearization  # takes any model, and has bfloat16 and second derivatives
_RENAMED = {"layers": "dense-chain"}  # old names, accepted for one release

Built = TypeVar("Built")
Engine = TypeVar("Engine", bound=type[Linearization])


class Options(TypedDict, total=False):
    """Keywords of every operator; docs/operators.md explains them.

    Attributes:
        engine: ``"dense-chain"``, ``"linearize"``, ``"autograd"``, or None to choose.
        params: names or ``fnmatch`` patterns of the parameters to differentiate by, names of
            modules, or parameters themselves; None: all.
        forward: ``forward(model, x)`` picks or makes the outputs (N, ...); None calls the model.
        batch_stats: ``"frozen"`` or ``"coupled"`` for batch norms on batch statistics.
        dropout: ``"fixed"`` for one fixed draw of every random number.
        seed: seed of that draw.
        check: compare outputs with a second forward pass, and derivatives of the model's own Python
            code with central differences; on by default.  The pass takes at most eight samples or
            an eighth of all, whichever is more, and two of a model that was seen to repeat before;
            all of them if samples depend on each other.
        memory_budget: memory that the operator may use in addition to model and data: bytes, or
            text like ``"512 MiB"``; None: half of the free memory.
        samples_at_once: samples linearized together; if fewer than N, every product linearizes
            each chunk again.
        columns_at_once: right-hand sides multiplied together.
        graphs: on a CUDA device, capture a product once for each number of columns and replay it as
            one CUDA graph.  Each graph keeps the memory of a product.  No effect on other devices.
        copy: False shares the parameters with the model instead of copying them; products raise a
            RuntimeError once a parameter has changed.
    """

    engine: str | None
    params: Chosen
    forward: Hook | None
    batch_stats: BatchStats | None
    dropout: Dropout | None
    seed: int
    check: bool
    memory_budget: int | str | None
    samples_at_once: int | None
    columns_at_once: int | None
    graphs: bool
    copy: bool


def register_engine(engine: Engine) -> Engine:
    """Add an engine to the table, so that ``cx.NTK(model, x, engine=name)`` uses it.

    It may decorate the class.  ``engine=None`` tries it before ``autograd``, which takes any model,
    and only where it has a :meth:`~catapult_ext.linops.engines.base.Linearization.recorder`.

    Args:
        engine: a subclass of :class:`~catapult_ext.linops.engines.base.Linearization` with a name
            (its attribute ``engine``), ``vjp`` and ``jvp``.

    Returns:
        The class.

    Raises:
        TypeError: no such class.
        ValueError: the name is in use.
    """
    where = "register_engine"
    if not (isinstance(engine, type) and issubclass(engine, Linearization)):
        v.fail(where, "engine must be a subclass of Linearization", engine, TypeError)
    missing = sorted({"engine"} - set(dir(engine)) | engine.__abstractmethods__)
    if missing:
        v.fail(where, "the class must define engine, vjp and jvp", f"none of {missing}", TypeError)
    free = engine.engine not in {*ENGINES, *_RENAMED}
    v.require(free, where, "the engine's name must not be in use", repr(engine.engine))
    ENGINES[engine.engine] = engine
    return engine


def checked_options(options: Options, where: str) -> Options:
    """The same options under their present names.

    Raises:
        TypeError: a keyword that is no option.
        ValueError: an unknown engine.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        v.fail(where, f"options are {', '.join(Options.__annotations__)}", unknown, TypeError)
    engine = options.get("engine")
    if isinstance(engine, str) and engine in _RENAMED:
        new = _RENAMED[engine]
        warn_renamed(f"{where}(engine={engine!r})", f"{where}(engine={new!r})")
        return cast("Options", {**options, "engine": new})
    known = engine is None or (isinstance(engine, str) and engine in ENGINES)
    v.require(known, where, f"engine must be None or one of {tuple(ENGINES)}", repr(engine))
    return options


def take_snapshot(
    model: nn.Module,
    x: Inputs,
    where: str,
    options: Options,
    probe: Probe = "kernel",
    loss: Loss | None = None,
    y: Any = None,
) -> Snapshot:
    """The checked copy of model and inputs that ``options`` describe, and of a loss of both."""
    policy = Policy(options.get("batch_stats"), options.get("dropout"), options.get("seed", 0))
    return Snapshot(
        model,
        x,
        where,
        params=options.get("params"),
        forward=options.get("forward"),
        policy=policy,
        probe=probe,
        check=options.get("check", True),
        copy=options.get("copy", True),
        loss=None if loss is None or is_known(loss) else loss,
        y=y,
        pick=own_loss if loss is OWN_LOSS else output_tensor,
    )


def freeze(
    model: nn.Module,
    x: Inputs,
    *,
    where: str = "NTK",
    probe: Probe = "kernel",
    loss: Loss | None = None,
    y: Any = None,
    **options: Unpack[Options],
) -> Linearization:
    """Linearize ``model`` at its parameters on inputs ``x``, within a memory budget.

    Args:
        model: module; :class:`~catapult_ext.linops.model.snapshot.Snapshot` lists what is refused.
        x: inputs, a tensor, tuple or mapping.
        where: name of the public function, for error messages.
        probe: product whose cost the plan predicts: ``"kernel"`` J J' u or ``"parameter"`` J' J t.
        loss: loss whose second derivative :class:`~catapult_ext.GGN` will use.
        y: labels, which determine N if inputs have different leading sizes.
        **options: see :class:`Options`.

    Raises:
        ValueError: unknown engine, an engine that cannot handle the model, a budget that one sample
            exceeds, or samples that depend on each other and do not fit together.

    Examples:
        >>> from catapult_ext.linops import freeze
        >>> J = freeze(nn.Linear(3, 2), torch.randn(4, 3))
        >>> J.vjp(torch.ones(8, 1)).shape, J.jvp(torch.ones(8, 1)).shape
        (torch.Size([8, 1]), torch.Size([8, 1]))
    """
    options = checked_options(options, where)
    engine, check = options.get("engine"), options.get("check", True)
    snapshot = take_snapshot(model, x, where, options, probe, loss, y)

    def measured(part: FixedModel) -> Linearization:
        return automatic(part) if engine is None else ENGINES[engine].build_to_measure(part)

    planner = planner_of(snapshot, options, measured)

    def build(plan: Plan | None) -> Linearization:
        if plan is not None and plan.samples < plan.n_samples:
            return LinearizationBySamples(
                snapshot, plan.samples, lambda part: linearize(part, engine), check, plan.budget
            )
        linearization = linearize(snapshot, engine)
        if plan is None:
            linearization = _within(linearization, planner.budget)
        return checked(linearization, check)

    graphs = captured_products(options, where, snapshot.device)
    with graphs.stream() if graphs else nullcontext():
        linearization, plan = in_any_layout(
            snapshot, lambda: within_budget(snapshot, options, planner, planner.budget, build)
        )
    require_captured(graphs, linearization.streamed, where)
    allowance = linearization.allowance

    def make_plan() -> Plan:
        again = planner_of(snapshot, options, measured, samples=snapshot.n_samples)
        return plan or again.plan()

    return linearization.allowed(
        Allowance(
            columns=allowance.columns if plan is None else plan.columns,
            workspace=allowance.workspace
            if plan is None
            else min(allowance.workspace, max(plan.budget - plan.peak, 0)),
            room=allowance.room if plan is None else max(plan.budget - plan.kept, 0),
            budget=options.get("memory_budget"),
            plan=make_plan,
            graphs=graphs,
        )
    )


def captured_products(
    options: Options, where: str, device: torch.device
) -> CapturedProducts | None:
    """The graphs of an operator's products where ``graphs=True`` asks for them."""
    asked = options.get("graphs", False)
    if not isinstance(asked, bool):
        v.fail(where, "graphs must be True or False", asked, TypeError)
    return CapturedProducts(where, device) if asked else None


def require_captured(graphs: CapturedProducts | None, streamed: bool, where: str) -> None:
    """Raise ValueError where every product linearizes the model again."""
    needs = "graphs=True needs all samples linearized at once; give more memory or fewer samples"
    v.require(graphs is None or not streamed, where, needs, "chunks of samples")


def linearize(snapshot: FixedModel, engine: str | None) -> Linearization:
    """The linearization by a named engine, or by the first one that accepts the model."""
    if snapshot.coarse:
        return GENERAL.build(snapshot)
    return automatic(snapshot) if engine is None else ENGINES[engine].build(snapshot)


def automatic(snapshot: FixedModel) -> Linearization:
    """The linearization by the first engine of the table that accepts a recorded forward pass.

    All recorders watch one pass.  A second one is run where the model looked like one that the
    first engine takes, so that expensive recorders were left out, or where the pass was altered.
    """
    kinds = [kind for kind in ENGINES.values() if kind is not GENERAL] + [GENERAL]
    if snapshot.probe == "hessian":
        kinds = [kind for kind in kinds if kind.hvp_modes is not None]
    why = ""
    while True:
        watching = [(k, r) for k in kinds if (r := k.recorder(snapshot)) is not None]
        if watching[0][1].likely:
            watching = [(k, r) for k, r in watching if r.cheap]
        outputs = snapshot.forward(_together(r.mode() for _, r in watching))
        raw = snapshot.take_raw_output()
        for kind, recorder in watching:
            made = kind.from_pass(snapshot, recorder, ForwardPass(outputs, raw, why))
            if made is not None:
                return made
            why = why or recorder.why
            kinds.remove(kind)
            if recorder.altered:
                break
        del outputs, raw


@contextmanager
def _together(modes: Iterable[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


def checked(linearization: Linearization, check: bool) -> Linearization:
    """The same, after a second forward pass where ``check`` asks for it and it can show anything.

    Raises:
        ValueError: the second pass gives other outputs, or gradients are not their derivatives.
    """
    if check and not linearization.proven:
        linearization.snapshot.check_repeats(linearization.outputs)
        linearization.check_derivatives()
    return linearization


def coarse(linearization: Linearization) -> Linearization:
    """The same model in the numbers of ``precision="mixed"``; where it has none, in bfloat16."""
    if format_of(linearization.snapshot, linearization.streamed)[0] == "int16":
        return LinearizationInInt16(linearization)
    own = linearization.coarse()
    return GENERAL.build(linearization.snapshot.in_bfloat16()) if own is None else own


def planned(options: Options) -> bool:
    """Whether the caller set an option that needs a plan before the first pass."""
    names = ("memory_budget", "samples_at_once", "columns_at_once")
    return any(options.get(name) is not None for name in names)


def planner_of(
    snapshot: FixedModel,
    options: Options,
    build: Callable[[FixedModel], Linearization],
    samples: int | None = None,
) -> Planner:
    """The planner of ``snapshot`` under the caller's budget and chunks."""
    return Planner(
        snapshot,
        build,
        parse_budget(options.get("memory_budget"), snapshot.device, snapshot.where),
        samples or options.get("samples_at_once"),
        options.get("columns_at_once"),
    )


def within_budget(
    snapshot: FixedModel,
    options: Options,
    planner: Planner,
    limit: float,
    build: Callable[[Plan | None], Built],
) -> tuple[Built, Plan | None]:
    """The result of ``build``, without a plan where all is small, and the plan where it has one.

    Where the caller asks for no plan, ``build(None)`` is tried first: its forward passes stop, or
    it raises :class:`~catapult_ext.linops.model.memory_meter.OverBudget`, at ``limit`` bytes.
    """
    if not planned(options):
        try:
            with snapshot.metered(limit):
                return build(None), None
        except OverBudget:
            pass
    plan = planner.plan()
    return build(plan), plan


def _within(linearization: Linearization, budget: int) -> Linearization:
    """The linearization with as many columns as the budget allows besides one product.

    Raises:
        OverBudget: one product may exceed the budget.
    """
    snapshot = linearization.snapshot
    assert snapshot.meter is not None
    needed = linearization.product_bytes(snapshot.meter.live)
    if needed > budget:
        raise OverBudget(f"{needed:.0f} bytes")
    if not linearization.gains_from_columns:
        return linearization
    column = 2.0 * linearization.n_params * snapshot.itemsize
    columns = min(64, 1 + int((budget - needed) // column))
    return linearization.allowed(Allowance(columns=columns))
