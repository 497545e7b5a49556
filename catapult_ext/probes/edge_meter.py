"""EdgeMeter: whether training is at its edge of stability, for any optimizer, from its own losses.

For a step theta_+ = theta - eta u the realized edge (arXiv 2608.18415) is

    zeta = 1 + (L(theta_+) - L(theta)) / (eta g.u) = eta u.H u / (2 g.u)

with H averaged along the step.  The loss falls exactly when zeta < 1, the best length along u has
zeta = 1/2, and zeta = 1 is the edge.  With the top eigenvalue S of the preconditioned Hessian,
zeta = chi varsigma / tau: spectral position, alignment of the step, and lag of the filter.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._state import attributes, check_state, put
from catapult_ext.eig import Estimate, TopTracker
from catapult_ext.probes.edge_row import EdgeRow, empty_row
from catapult_ext.probes.loggers import Logging, edge_numbers
from catapult_ext.probes.loss_again import Evaluate, Replay, StepHessian, moved_back
from catapult_ext.probes.observables import DROPOUT
from catapult_ext.probes.record import BoundedRecord
from catapult_ext.probes.step_metric import NoMetric, as_real, step_metric
from catapult_ext.probes.step_watch import StepWatch, dot
from catapult_ext.probes.threshold import ThresholdCache

_WHERE = "EdgeMeter"
_KIND = {"format": "catapult_ext EdgeMeter 1"}
_STATE = ("count", "_pending_metric", "_pending_square")
_PARTS = ("_record", "_top", "_watch")
_CHECK_EVERY = 25  # rows with curvature from one checked solve to the next


class EdgeMeter:
    """The realized edge zeta of every step, in any training loop and for any descent optimizer.

    Call :meth:`step` once after every optimizer step, with the loss that the step used.  zeta comes
    from the parameters' displacement, so that momentum, preconditioners, weight decay, schedules,
    parameter groups and clipping are all in it.  The model, its gradients, buffers and the random
    state are left as they are.  A step that cannot be measured gives a row of NaN with a flag.

    With ``full_batch=True`` the next step's loss completes a row, and zeta costs no forward pass:

        with cx.EdgeMeter(model, optimizer, full_batch=True) as meter:
            for _ in range(steps):
                optimizer.zero_grad()
                loss = loss_fn(model(x), y)
                loss.backward()
                optimizer.step()
                meter.step(loss)
        print(meter.rows[-1]["zeta"])

    With mini-batches ``evaluate`` makes one more forward pass on the step's own batch:

        meter = cx.EdgeMeter(model, optimizer, every=10)
        ...
        row = meter.step(loss, evaluate=lambda: loss_fn(model(x), y))

    Under ``GradScaler`` pass the unscaled loss, under accumulation the mean over the micro-batches,
    and let ``evaluate`` return the same mean.

    ``state_dict()`` and ``load_state_dict()`` keep a meter in a training's checkpoint; one that has
    loaded it resumes with the same rows.

    Args:
        model: the module trained.
        optimizer: any torch optimizer that makes one step from one gradient, or a wrapper that
            holds it as ``optimizer`` (accelerate's).
        full_batch: whether every step uses the same data, without dropout or augmentation.
        every: steps from row to row.
        curvature_every: steps between rows with chi, varsigma, tau and batch sharpness, a multiple
            of ``every``; 0 for none.  They need ``evaluate``.
        batch_sharpness: whether rows with curvature have the batch sharpness too.
        tol: relative error asked of S; what it came to is in ``eta_sharpness_error``.
        seed: seed of the eigenvalue solver.
        log: where zeta and, where measured, chi, varsigma and tau of each row go: a W&B run, a
            SummaryWriter and more (:func:`~catapult_ext.probes.loggers.logger_of`).

    Attributes:
        rows: one :class:`EdgeRow` a measured step: the first 4096 are kept, and at most as many
            later ones, evenly spread, and the last.

    Raises:
        TypeError: no module, no torch optimizer, LBFGS.
        ValueError: bad options; more than one process; ``step`` without what it needs.

    Cost:
        A copy of the parameters, and three passes over them, each measured step.  ``evaluate`` adds
        a forward pass.  A row with curvature adds a forward and backward pass with a kept graph and
        1 to 3 Hessian products, each about two training steps (10 to 30 products at the first one
        and every 25th, and where S has moved by a quarter); the batch sharpness adds one.

    Examples:
        >>> net, x, y = nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with cx.EdgeMeter(net, optimizer, full_batch=True) as meter:
        ...     for _ in range(5):
        ...         optimizer.zero_grad()
        ...         loss = nn.functional.mse_loss(net(x), y)
        ...         loss.backward()
        ...         optimizer.step()
        ...         row = meter.step(loss)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        full_batch: bool = False,
        every: int = 1,
        curvature_every: int = 0,
        batch_sharpness: bool = True,
        tol: float = 1e-2,
        seed: int = 0,
        log: Any = None,
    ) -> None:
        v.module(_WHERE, model)
        inner = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(inner, torch.optim.Optimizer):
            kind = type(optimizer).__name__
            v.fail(_WHERE, "optimizer must be a torch.optim.Optimizer", kind, TypeError)
        if isinstance(inner, torch.optim.LBFGS):
            text = "optimizer must make one step from one gradient (LBFGS evaluates several)"
            v.fail(_WHERE, text, type(inner).__name__, TypeError)
        v.integers(_WHERE, every=every, curvature_every=curvature_every, seed=seed)
        v.numbers(_WHERE, tol=tol)
        v.require(every >= 1, _WHERE, "every must be >= 1", every)
        text = "curvature_every must be >= 0 and a multiple of every"
        fits = curvature_every >= 0 and curvature_every % every == 0
        v.require(fits, _WHERE, text, curvature_every)
        distributed = torch.distributed
        ranks = 1
        if distributed.is_available() and distributed.is_initialized():
            ranks = distributed.get_world_size()
        v.require(ranks == 1, _WHERE, "training must run in one process (losses are local)", ranks)
        self.model, self.optimizer = model, inner
        self.full_batch, self.every, self.curvature_every = full_batch, every, curvature_every
        self._log = Logging(log, _WHERE, logging.DEBUG)
        self._record: BoundedRecord[EdgeRow] = BoundedRecord()
        self.count = 0
        # no guards: a row then takes one product where S has moved little
        self._top = TopTracker(1, tol=tol, guards=0, check_every=_CHECK_EVERY, seed=seed)
        self._sharpness_of_batches = batch_sharpness
        self._dropouts = [m for m in model.modules() if isinstance(m, DROPOUT)]
        self._thresholds = ThresholdCache()
        self._pending: EdgeRow | None = None
        self._pending_metric: tuple[float, float] | None = None
        self._pending_square = math.nan
        self._watch = StepWatch(inner)
        self._replay = Replay(model)
        self._replay.keeping = self._evaluates(0)
        self._open = True

    @property
    def rows(self) -> list[EdgeRow]:
        """One row per measured step; see the class."""
        return self._record.rows

    def __enter__(self) -> EdgeMeter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take all hooks away; a row that waits for the next loss is kept with a flag."""
        if self._pending is not None:
            self._pending["flags"].append("no next loss")
            self._pending = None
        if self._open:
            self._watch.close()
            self._replay.close()
        self._open = False

    def state_dict(self) -> dict[str, Any]:
        """All that later rows depend on and all rows: tensors, numbers, texts, lists of them."""
        parts = {name.lstrip("_"): getattr(self, name).state_dict() for name in _PARTS}
        return {
            **_KIND,
            **attributes(self, _STATE),
            **parts,
            "pending": self._pending is not None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a :meth:`state_dict`, between two steps and after the model's is loaded.

        Raises:
            TypeError, ValueError: the state of something else.
        """
        names = (*_STATE, *_PARTS, "pending")
        check_state(f"{_WHERE}.load_state_dict", state, _KIND, names)
        put(self, _STATE, state)
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name.lstrip("_")])
        self._pending = self.rows[-1] if state["pending"] else None
        self._watch.clear(measuring=self._measures(self.count))
        self._replay.clear(keeping=self._evaluates(self.count))

    def hold_gradient(self) -> None:
        """The present gradients are the loss's own: call it before something changes them.

        Needed in two cases only: at the end of a closure that is given to ``optimizer.step``, and
        where gradients are changed in a way that no hook of the backward pass sees.
        """
        self._watch.hold_gradient()

    def _measures(self, count: int) -> bool:
        return count % self.every == 0

    def _bends(self, count: int) -> bool:
        return self.curvature_every > 0 and count % self.curvature_every == 0

    def _evaluates(self, count: int) -> bool:
        return self._measures(count) and (not self.full_batch or self._bends(count))

    def step(
        self, loss: Tensor | float | None = None, evaluate: Evaluate | None = None
    ) -> EdgeRow | None:
        """To be called after every optimizer step.

        Args:
            loss: the loss that this step used; needed at measured steps.
            evaluate: returns the loss of the same batch once more, at the model's present
                parameters; called at measured steps where ``full_batch`` does not suffice.

        Returns:
            A row that was completed: of this step, with ``full_batch`` of the last measured one.

        Raises:
            ValueError: a meter that was closed; no ``evaluate`` although it is needed.
        """
        where = f"{_WHERE}.step"
        v.require(self._open, where, "the meter must be open", "a closed one")
        count = self.count
        if self._evaluates(count) and evaluate is None:
            text = "evaluate must be given, or full_batch=True and curvature_every=0"
            v.fail(where, text, None)
        value = math.nan
        if loss is not None and (self._pending is not None or self._measures(count)):
            value = loss.item() if isinstance(loss, Tensor) else float(loss)
        done = self._complete(value)
        if self._measures(count):
            row = self._row(value)
            if evaluate is not None and self._evaluates(count):
                self._measured(row, evaluate)
                done = row if not self.full_batch else done
        if done is not None:
            self._log(edge_numbers(done), done["step"])
        self.count += 1
        self._watch.clear(measuring=self._measures(self.count))
        self._replay.clear(keeping=self._evaluates(self.count))
        return done

    __call__ = step

    def _complete(self, value: float) -> EdgeRow | None:
        """Full batch: this step's loss is the last row's loss after its step."""
        row, self._pending = self._pending, None
        if row is None:
            return None
        if any("between steps" in flag for flag in self._watch.flags):
            row["flags"].append("parameters changed between steps")
        self._finish(row, value)
        return row

    def _row(self, value: float) -> EdgeRow:
        """A row of this step with what its displacement and gradient say."""
        watch = self._watch
        row = empty_row(self.count, value)
        self._record.append(row)
        self._pending_metric, self._pending_square = None, math.nan
        flags = row["flags"]
        flags += [f for f in watch.flags if "between steps" not in f]
        if watch.steps != 1:
            flags.append("no optimizer step" if not watch.steps else "stepped twice")
        if math.isnan(value):
            flags.append("no loss")
        if self.full_batch and any(m.training and m.p > 0 for m in self._dropouts):
            flags.append("dropout")
        if not flags and watch.products is not None:
            row["descent"], self._pending_square = watch.products.tolist()
            if not row["descent"] > 0:
                flags.append("g.u <= 0" if row["descent"] <= 0 else "not finite")
        if self.full_batch:
            self._pending = row
        return row

    def _finish(self, row: EdgeRow, after: float) -> None:
        """Enter the loss after the step, and all that follows from it."""
        if not math.isfinite(after) or not math.isfinite(row["loss"]):
            row["flags"].append("loss not finite")
        if row["flags"]:
            return
        row["change"] = after - row["loss"]
        row["zeta"] = 1 + row["change"] / row["descent"]
        types = {p.dtype for p in map(as_real, self._watch.parameters) if p.is_floating_point()}
        eps = max((torch.finfo(t).eps for t in types), default=math.nan)
        row["rounding"] = eps * abs(row["loss"]) / row["descent"]
        bent = 2 * (row["change"] + row["descent"])  # eta^2 u.H u, H averaged along the step
        row["curvature"] = bent / self._pending_square
        if self._pending_metric is not None:
            square, sharpness = self._pending_metric  # |d|^2 in the metric 1/D, and eta S
            row["eta_curvature"] = bent / square
            row["varsigma"] = bent / (sharpness * square)
            row["tau"] = 2 / row["threshold"] * row["descent"] / square
            row["chi"] = sharpness / row["threshold"]

    def _measured(self, row: EdgeRow, evaluate: Evaluate) -> None:
        if self._bends(self.count) and not row["flags"]:
            try:
                self._bend(row, evaluate)
            except v.NotFinite:
                row["reason"] = "the Hessian is not finite"
            except (NoMetric, RuntimeError, ValueError) as error:  # such as no second derivative
                row["reason"] = str(error)
        if not self.full_batch:
            with torch.no_grad(), self._replay.again():
                after = float(evaluate())
            self._finish(row, after)

    @no_autocast()
    def _bend(self, row: EdgeRow, evaluate: Evaluate) -> None:
        """Top eigenvalue and batch sharpness at the parameters where the step began."""
        watch = self._watch
        threshold = self._thresholds.of(self.optimizer)
        row["threshold"] = threshold.k
        if threshold.reason is not None:
            raise NoMetric(threshold.reason)
        adaptive = bool(threshold.preconditioned)
        metric = step_metric(self.optimizer, watch.rates, adaptive, watch.displacement)
        with self._replay.again(), moved_back(watch.parameters, watch.displacement):
            hessian = StepHessian(evaluate, watch.parameters, metric)
            found = self._top.update(hessian)
            if self._sharpness_of_batches:
                g = hessian.gradient
                row["eta_batch_sharpness"] = float(g @ (hessian @ g)) / float(g @ g)
        row["eta_sharpness"] = found.eigenvalues[0].item()
        row["eta_sharpness_error"] = found.errors[0].item()
        pairs = zip(watch.displacement, metric, strict=True)
        square = dot(watch.displacement, [as_real(d) / m for d, m in pairs]).item()
        self._pending_metric = square, row["eta_sharpness"]

    def batch_sharpness(self, last: int | None = None) -> Estimate:
        """Mean of eta g.H g / |g|^2 over rows with curvature, with its standard error.

        SGD at its edge has a mean of 2 (arXiv 2412.20553).  Rows far apart are independent batches
        at slowly changing parameters.

        Args:
            last: rows with curvature to take, counted from the end; None for all.

        Raises:
            ValueError: no such row.
        """
        v.integers(f"{_WHERE}.batch_sharpness", last=last, optional=True)
        found = [row["eta_batch_sharpness"] for row in self.rows]
        found = [value for value in found if math.isfinite(value)][-(last or 0) :]
        v.require(bool(found), f"{_WHERE}.batch_sharpness", "a row must have curvature", len(found))
        values = torch.tensor(found, dtype=torch.float64, device="cpu")
        spread = values.std() / math.sqrt(len(found)) if len(found) > 1 else values[0] * math.nan
        return Estimate(values.mean(), spread, len(found), len(found))
