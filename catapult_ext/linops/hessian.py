"""The Hessian of the loss: layers' own products, or double backward on one kept graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext.linops.base import LinearOperator
from catapult_ext.linops.engines.autograd import AutogradLinearization
from catapult_ext.linops.engines.autograd_hessian import MODES, ForwardHVP, ReverseHVP, StreamedHVP
from catapult_ext.linops.engines.by_samples import LinearizationBySamples
from catapult_ext.linops.engines.choose import (
    GRAPHS,
    Options,
    planned,
    planner_of,
    take_snapshot,
    traced,
)
from catapult_ext.linops.engines.dense_chain_hessian import DenseChainHVP
from catapult_ext.linops.engines.plan import Plan, Planner
from catapult_ext.linops.ggn import unpack
from catapult_ext.linops.model.channels_last import in_any_layout, plain_layout
from catapult_ext.linops.model.memory_meter import LIMITS, Meter, OverBudget
from catapult_ext.linops.model.snapshot import Snapshot
from catapult_ext.losses import Loss, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Hessian(LinearOperator):
    """Second derivatives of the loss, (P, P), parameters in ``named_parameters`` order.

    Forward and backward run once.  A chain of dense layers is multiplied from its activations,
    several vectors at once (``engine="layers"``); elsewhere a product is one backward through that
    backward (``hvp="reverse"``), or a tangent through both, without a kept graph (``"forward"``).
    Where that does not fit into the budget, chunks of samples are frozen anew for every product.

    Args:
        model: any module with outputs (N, O) or (N,).
        loss: a name, torch loss module or any callable ``(outputs, targets) -> scalar``, which
            gets the outputs as the model returns them (see :func:`catapult_ext.losses.resolve`).
        data: ``(x, y)``, the full batch.
        hvp: ``"reverse"``, ``"forward"`` or None: layers where the model is such a chain, else
            reverse.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Raises:
        ValueError: targets that do not fit, a non-finite loss.
        RuntimeError: an operation without second derivative.
    """

    name = "Hessian"

    @no_autocast()
    def __init__(
        self,
        model: nn.Module,
        loss: object,
        data: object,
        *,
        hvp: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        x, y = unpack(data, self.name)
        engine = options.get("engine")
        right = engine in (None, "layers", "autograd")
        v.require(right, self.name, "engine must be None, 'layers' or 'autograd'", repr(engine))
        right = hvp is None or hvp in MODES
        v.require(right, self.name, f"hvp must be None or one of {MODES}", repr(hvp))
        clash = engine == "layers" and hvp is not None
        v.require(not clash, self.name, "hvp must be None with engine='layers'", repr(hvp))
        self._hvp, self._options = hvp, options
        snapshot, loss = take_snapshot(model, x, self.name, options), resolve(loss)
        in_any_layout(snapshot, lambda: self._set_up(snapshot, loss, y))

    def coarse(self) -> Hessian:
        """The same operator with products in bfloat16 (autocast), good to about 1 % of its norm."""
        snapshot = copy.copy(self.snapshot)
        snapshot.coarse = True
        out = Hessian.__new__(Hessian)
        out._hvp, out._options = self._hvp, {**self._options, "check": False}
        out._set_up(snapshot, self.loss, self._targets)
        return out

    def _set_up(self, snapshot: Snapshot, loss: Loss, y: Any) -> None:
        self.snapshot, self.loss, self._targets = snapshot, loss, y
        self.shape = (snapshot.n_params, snapshot.n_params)
        self.dtype, self.device = snapshot.dtype, snapshot.device
        self._plan: Plan | None = None
        planner = self._planner()
        if planned(self._options):
            self._plan = planner.plan()
            self._products = self._built(self._plan)
        else:
            self._guarded(planner)
        self.engine, self.columns = "autograd", 1 if self._plan is None else self._plan.columns
        if isinstance(self._products, DenseChainHVP):
            self.engine, self.columns = "layers", self._products.columns
        self.value = self._products.value.detach()

    @property
    def gradient(self) -> Tensor:
        """Gradient of the loss, (P,)."""
        return self._products.gradient

    @property
    def plan(self) -> Plan:
        """Chunks and predicted flops, bytes and peak memory; a few samples are run to find them."""
        return self._plan or self._planner(self.snapshot.n_samples).plan()

    def _planner(self, samples: int | None = None) -> Planner:
        def build(part: Snapshot) -> tuple[AutogradLinearization, Callable[[], object]]:
            linearization = _graph(part)
            t = linearization.outputs.new_ones(linearization.n_params, 1)
            return linearization, lambda: linearization.second(linearization.outputs, t)

        return planner_of(self.snapshot, self._options, build, samples)

    def _built(self, plan: Plan | None) -> ReverseHVP | ForwardHVP | StreamedHVP | DenseChainHVP:
        snapshot, check = self.snapshot, self._options.get("check", True)
        engine = self._options.get("engine")
        if plan is not None and plan.samples < plan.n_samples:
            for given, name in ((self._hvp, "hvp"), (engine == "layers" or None, "engine")):
                needs = f"{name} must be None where samples go in chunks"
                v.require(given is None, self.name, needs, engine if name == "engine" else given)
            linearization = LinearizationBySamples(snapshot, plan.samples, _graph, check)
            return StreamedHVP(linearization, self.loss, self._targets)
        # a plan has measured the graph's products
        direct = engine == "layers" or (engine is None and plan is None)
        if direct and self._hvp is None and not snapshot.coarse:
            outputs, chain, _ = traced(snapshot, engine)
            if chain is not None:
                return DenseChainHVP(snapshot, self.loss, self._targets, outputs, chain)
        else:
            outputs = snapshot.forward()
        if check:
            snapshot.check_repeats(outputs)
        kind = ForwardHVP if self._hvp == "forward" else ReverseHVP
        return kind(snapshot, self.loss, self._targets, outputs)

    def _guarded(self, planner: Planner) -> None:
        """Without a plan where all is small: the forward pass stops when it passes the budget."""
        self.snapshot.meter = Meter(self.snapshot.tensors(), planner.budget / GRAPHS)
        try:
            self._products = self._built(None)
            return
        except OverBudget:
            pass
        finally:
            self.snapshot.meter = None
        self._plan = planner.plan()
        self._products = self._built(self._plan)

    def _matmat(self, vectors: Tensor) -> Tensor:
        try:
            return self._products.product(vectors)
        except LIMITS:
            raise
        except Exception:  # torch's forward mode refuses channels last of some operations
            if self._hvp != "forward" or not plain_layout(self.snapshot):
                raise
        self._products = self._built(self._plan)
        return self._products.product(vectors)


def _graph(snapshot: Snapshot) -> AutogradLinearization:
    """A frozen model for second derivatives, which need no tangent program."""
    return AutogradLinearization(snapshot, snapshot.forward())
