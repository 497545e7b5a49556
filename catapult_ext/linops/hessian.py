"""The Hessian of the loss: products of a dense chain, or double backward on one kept graph."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._batches import Batch, batch_of, inputs_of
from catapult_ext.linops.base import LinearOperator
from catapult_ext.linops.engines.autograd_hessian import Mode
from catapult_ext.linops.engines.base import GRAPHS, HessianProducts, Linearization
from catapult_ext.linops.engines.by_samples import LinearizationBySamples
from catapult_ext.linops.engines.choose import (
    ENGINES,
    GENERAL,
    Options,
    captured_products,
    checked,
    checked_options,
    linearize,
    planner_of,
    require_captured,
    take_snapshot,
    within_budget,
)
from catapult_ext.linops.engines.labels_inside import labels_as_trained
from catapult_ext.linops.engines.loss_curvature import is_known, loss_sees_parameters
from catapult_ext.linops.engines.mixed_precision import HessianInInt16, format_of, mixed_text
from catapult_ext.linops.engines.plan import Plan
from catapult_ext.linops.engines.planner import Planner
from catapult_ext.linops.model.captured import CapturedProducts
from catapult_ext.linops.model.channels_last import in_any_layout, set_plain_layout
from catapult_ext.linops.model.keeps_graph import KeepsGraph
from catapult_ext.linops.model.memory_meter import LIMITS
from catapult_ext.linops.model.several import TakesSeveral
from catapult_ext.linops.model.snapshot import Snapshot
from catapult_ext.losses import OWN_LOSS, Loss, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Hessian(KeepsGraph, LinearOperator, TakesSeveral):
    """Second derivatives of the loss, (P, P), parameters in ``named_parameters`` order.

    Forward and backward run once.  A chain of dense layers is multiplied from its activations,
    several vectors at once (``engine="dense-chain"``).  For other models a product is a backward
    pass through the backward pass (``hvp="reverse"``), or a tangent through both, without a stored
    graph (``"forward"``).  If that does not fit into the budget, every product linearizes chunks
    of samples again.

    Args:
        model: any module with outputs (N,) or (N, d1, ..., dk); a list of modules
            gives a :class:`~catapult_ext.StackedHessian`.
        loss: a name, torch loss module or any callable ``(outputs, targets) -> scalar``, which
            gets the outputs as the model returns them (see :func:`catapult_ext.losses.resolve`);
            None takes the loss that the model returns for a batch with labels.
        data: ``(x, y)``, the full batch, or another form that
            :func:`~catapult_ext._batches.batch_of` takes; with ``loss=None`` the inputs alone.
        hvp: ``"reverse"``, ``"forward"``, or None for the products of a dense chain if the model is
            one, else ``"reverse"``.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Attributes:
        outputs: outputs of the model, (N, O).
        targets: the labels as the loss compares them with the outputs.

    Raises:
        ValueError: targets that do not fit, a non-finite loss.
        RuntimeError: an operation without second derivative.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> H = cx.Hessian(net, nn.CrossEntropyLoss(), (torch.randn(8, 3), torch.randint(2, (8,))))
        >>> largest, smallest = cx.eigsh(H).eigenvalues, cx.eigsh(H, which="SA").eigenvalues
        >>> bool(largest > smallest)
        True
    """

    name = "Hessian"
    _graphs: CapturedProducts | None = None

    @no_autocast()
    def __init__(
        self,
        model: nn.Module,
        loss: object,
        data: object,
        *,
        hvp: Mode | None = None,
        **options: Unpack[Options],
    ) -> None:
        options = checked_options(options, self.name)
        _check_engine(options.get("engine"), hvp, self.name)
        known = resolve(loss)
        if known is OWN_LOSS:
            batch = Batch(inputs_of(data, self.name), None, False)
        else:
            batch = batch_of(data, self.name)
        snapshot = take_snapshot(model, batch.x, self.name, options, "hessian", known, batch.y)
        self._graphs = captured_products(options, self.name, snapshot.device)
        with self._graphs.stream() if self._graphs else nullcontext():
            in_any_layout(snapshot, lambda: self._set_up(snapshot, known, batch, hvp, options))

    @property
    def mixed(self) -> str:
        """Format of products of ``eigsh(precision="mixed")``: ``"int16"``, ``"bfloat16"``, ``""``.

        An empty string means full precision.  :attr:`plan` gives the reason.
        """
        return format_of(self.snapshot, self._streamed)[0]

    def coarse(self) -> Hessian:
        """The same operator in the numbers of ``mixed``; where it has none, in bfloat16."""
        if self.mixed == "int16":
            out = copy.copy(self)
            out._products = HessianInInt16(self._products)
            return out
        options: Options = {**self._options, "check": False}
        rounded = self.snapshot.in_bfloat16()
        return self._of(rounded, self.loss, self._batch, self._hvp, options)

    def _set_up(
        self, snapshot: Snapshot, loss: Loss, batch: Batch, hvp: str | None, options: Options
    ) -> None:
        self.snapshot, self.loss, self._batch = snapshot, loss, batch
        self._hvp, self._options = hvp, options
        self.shape = (snapshot.n_params, snapshot.n_params)
        self.dtype, self.device = snapshot.dtype, snapshot.device
        planner = self._planner()
        # the graph of a backward pass counts in a product: the forward pass gets its share alone
        limit = planner.budget / GRAPHS
        built, self._plan = within_budget(snapshot, options, planner, limit, self._built)
        self.engine, self._products = built
        self.columns = self._products.columns or (1 if self._plan is None else self._plan.columns)
        self.value = self._products.value.detach()

    @property
    def n_samples(self) -> int:
        """N: the leading size of the outputs; that of the inputs for the model's own loss."""
        own = self.loss is OWN_LOSS or not self.output_shape
        return self.snapshot.n_samples if own else self.output_shape[0]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape (N, d1, ..., dk) of the outputs as the model returns them."""
        return self.snapshot.output_shape

    @property
    def n_params(self) -> int:
        """P."""
        return self.snapshot.n_params

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters that H differentiates by, in order."""
        return self.snapshot.names

    @property
    def parameter_shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of these parameters; a complex one has a last dimension of its two parts."""
        return self.snapshot.shapes

    @property
    def gradient(self) -> Tensor:
        """Gradient of the loss, (P,)."""
        return self._products.gradient

    @property
    def rounding_unit(self) -> float:
        """Eps of ``dtype``, or of what the forward pass computes in where that is coarser."""
        return self.snapshot.observed.eps

    @property
    def plan(self) -> Plan:
        """Chunks and predicted flops, bytes and peak memory; a few samples are run to find them."""
        plan = self._plan or self._planner(self.snapshot.n_samples).plan()
        return replace(plan, mixed=mixed_text(self.snapshot, self._streamed))

    @property
    def _streamed(self) -> bool:
        return self._plan is not None and self._plan.samples < self._plan.n_samples

    @property
    def budget(self) -> int | None:
        """Bytes of ``memory_budget``; None where none was given."""
        return None if self._options.get("memory_budget") is None else self.plan.budget

    def solver_room(self, columns: int) -> int | None:
        """Bytes of the budget that a product of ``columns`` leaves; None without a budget."""
        return None if self.budget is None else self.plan.room(min(columns, self.columns))

    @property
    def skew_is_rounding(self) -> bool:
        """True where torch's own operations alone, checked to repeat, make the loss."""
        proven = self._options.get("check", True) and is_known(self.loss)
        return proven and self.snapshot.observed.plain

    def _planner(self, samples: int | None = None) -> Planner:
        # an engine that keeps no graph costs less than the general one
        return planner_of(self.snapshot, self._options, GENERAL.build_to_measure, samples)

    def _built(self, plan: Plan | None) -> tuple[str, HessianProducts]:
        """The name of the engine, and its products."""
        snapshot, check = self.snapshot, self._options.get("check", True)
        engine = self._options.get("engine")
        linearization: Linearization
        if plan is not None and plan.samples < plan.n_samples:
            require_captured(self._graphs, True, self.name)
            needs = "must be None where samples go in chunks"
            v.require(self._hvp is None, self.name, f"hvp {needs}", self._hvp)
            kind = GENERAL if engine is None else ENGINES[engine]
            v.require(kind.second_of_chunks, self.name, f"engine {needs}", engine)
            linearization = LinearizationBySamples(
                snapshot, plan.samples, kind.build, check, plan.budget
            )
        else:
            if engine is None and (self._hvp is not None or plan is not None):
                engine = GENERAL.engine  # it has the modes, and the plan has measured its products
            linearization = checked(linearize(snapshot, engine), check)
            self._read_labels(linearization)
            other = engine is None and not isinstance(linearization, GENERAL)
            if other and loss_sees_parameters(
                snapshot, self.loss, self.targets, linearization.outputs
            ):
                linearization = checked(linearize(snapshot, GENERAL.engine), check)
        self._read_labels(linearization)
        products = linearization.hessian(self.loss, self.targets, self._hvp)
        if check:
            products.check()
        return linearization.engine, products

    def _read_labels(self, linearization: Linearization) -> None:
        self.outputs = linearization.outputs
        self.targets = labels_as_trained(self.snapshot, self.loss, self._batch, self.outputs)

    def _at_once(self, vectors: Tensor) -> Tensor:
        self.snapshot.require_unchanged()
        graphs = self._graphs
        return self._matmat(vectors) if graphs is None else graphs.product(self._matmat, vectors)

    def _matmat(self, vectors: Tensor) -> Tensor:
        self.snapshot.require_unchanged()
        try:
            return self._products.product(vectors)
        except LIMITS:
            raise
        except Exception:  # torch's forward mode refuses channels last of some operations
            if self._hvp != "forward" or not set_plain_layout(self.snapshot):
                raise
        self.engine, self._products = self._built(self._plan)
        return self._products.product(vectors)


def _check_engine(engine: str | None, hvp: str | None, where: str) -> None:
    """Raise ValueError unless the engine has a Hessian, and by ``hvp``."""
    able = [name for name, kind in ENGINES.items() if kind.hvp_modes is not None]
    v.require(
        engine is None or engine in able,
        where,
        f"engine must be None or one of {tuple(able)}",
        repr(engine),
    )
    modes = GENERAL.hvp_modes or ()
    v.require(hvp is None or hvp in modes, where, f"hvp must be None or one of {modes}", repr(hvp))
    known = () if engine is None else ENGINES[engine].hvp_modes or ()
    v.require(
        engine is None or hvp is None or hvp in known,
        where,
        f"hvp must be None with engine='{engine}'",
        repr(hvp),
    )
