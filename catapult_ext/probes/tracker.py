"""CurvatureTracker: the top of the spectrum along any training loop, within an overhead budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._model_call import Forward
from catapult_ext._store import writing
from catapult_ext.eig import EigshResult, TopTracker
from catapult_ext.linops import GGN, NTK, Hessian
from catapult_ext.linops.ggn import DualGGN
from catapult_ext.losses import OWN_LOSS, SquaredLoss, resolve
from catapult_ext.models import batch_stats_held, with_batch_stats
from catapult_ext.probes import free
from catapult_ext.probes.jumps import Jumps
from catapult_ext.probes.observables import Activity, ActivityWatch, activity, weight_norm
from catapult_ext.probes.overhead import Overhead
from catapult_ext.probes.problem import Problem
from catapult_ext.probes.record import BoundedRecord, Row, write_run

QUANTITIES = ("ggn", "hessian", "ntk")
_WHERE = "CurvatureTracker"
_TIMED_STEPS = 3  # a budget is split once so many steps have been timed
_COLD_FORWARDS = 50  # a checked solve in forward passes: about 20 products and the freezing
_FIRST_SHARE = 0.1  # of the budget of ``steps`` steps, for one checked solve
_LEAST_SAMPLES = 16
_FREE_SHARE = 1 / 3  # of a budget, for the norms of gradients


class CurvatureTracker:
    """Top-k eigenvalues of the GGN, Hessian or NTK while a model trains, in any loop.

    Call :meth:`step` (or the tracker) once after every optimizer step, before gradients are zeroed.
    Probes are warm-started (see :class:`~catapult_ext.TopTracker`); the model, its gradients, modes
    and buffers are left as they are.

        with cx.CurvatureTracker(model, "half_mse", (x, y), optimizer=opt, every=10) as tracker:
            for _ in range(steps):
                opt.zero_grad()
                loss = loss_fn(model(x), y)
                loss.backward()
                opt.step()
                tracker.step(loss)
        print(tracker.probes[-1]["values"], tracker.report())

    Args:
        model: the module trained.
        loss: the loss trained (:func:`catapult_ext.losses.resolve`); with ``quantity="hessian"``
            also None, the loss that the model returns.
        data: fixed probe set ``(x, y)``, or another form that
            :func:`~catapult_ext._batches.batch_of` takes; None probes the ``batch`` given to
            :meth:`step`.
        quantity: ``"ggn"``, ``"hessian"`` or ``"ntk"`` (sum convention; needs a fixed probe set).
        k: eigenvalues followed; ``grow_at`` may raise it to ``max_k``.
        every: steps from probe to probe (with ``budget``: at least so many).
        budget: most that probing may cost, as a share of training time, or None.  With a budget the
            first probe comes after three timed steps and may run into debt; from then on a probe is
            made only when even a checked solve would keep within it.  Unless ``samples`` is given,
            so many probe samples are taken that such a solve costs at most a tenth of the budget of
            ``steps`` steps.  r_t and lambda_r are taken at as many steps as a third of it pays for.
        steps: length of training that a budget is laid out for.
        samples: use the first so many probe samples.
        tol: relative error asked for.
        optimizer: read for the learning rate; needed by ``grow_at`` and r_t.
        grow_at: follow one more eigenvalue while eta times the smallest exceeds this (e.g. 1.5).
        max_k: most eigenvalues followed.
        kernel_samples: compare the trace kernel of so many probe samples with that at the first
            probe (drift); 0 for none.
        batch_stats: what batch normalisation means, ``models.BATCH_STATS``.
        forward: ``forward(model, x)`` returns the outputs; None calls the model.
        params: names or patterns of the parameters to differentiate by; None for all.
        dropout: None turns dropout off, ``"fixed"`` takes one fixed mask where it is on.
        memory_budget: of the operators.
        check_every: see :class:`~catapult_ext.TopTracker`.  Where the loss or the norm of the
            gradient exceeds twice the largest value since the probe before the last one, a checked
            probe is made at once (with ``budget``: as soon as it pays for one).
        seed: of random vectors.
        out: run folder to write at the end; needs to be new or ``fresh``.
        fresh: replace an earlier run in ``out``.

    Attributes:
        probes: one :class:`~catapult_ext.probes.record.Row` a probe, a dictionary: ``step``,
            ``values`` and ``errors`` (k), ``index_check``, ``products``, ``flags``, ``eta``,
            ``eta_lambda``, ``weight_norm``, ``inactive``, ``top_shares`` of a squared loss,
            ``drift`` and ``drift_norm``.
        steps_seen: one dictionary a step where a loss was given: ``loss``, ``r``, ``lambda_r``
            (:class:`~catapult_ext.probes.free.StepObservables`).  Of both lists the first 4096 rows
            are kept, and at most as many later ones, evenly spread, and the last.
        overhead: seconds of training and probing, and their ratio ``share``.

    Raises:
        ValueError: bad options; ``step`` without the batch it needs.
        TypeError: data that is no pair; see also
            :class:`~catapult_ext.linops.model.snapshot.Snapshot`.

    Cost:
        Freezing the model (about 3 forward passes) and, for slow drift, k + guards + 1 products of
        2-3 (NTK, GGN) or 4-5 (Hessian) forward passes; every ``check_every``-th probe a checked
        solve.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: object,
        data: Any = None,
        *,
        quantity: str = "ggn",
        k: int = 1,
        every: int = 10,
        budget: float | None = None,
        steps: int = 500,
        samples: int | None = None,
        tol: float = 1e-3,
        optimizer: torch.optim.Optimizer | None = None,
        grow_at: float | None = None,
        max_k: int = 16,
        kernel_samples: int = 0,
        batch_stats: str = "coupled",
        check_every: int = 10,
        seed: int = 0,
        out: Path | str | None = None,
        fresh: bool = False,
        forward: Forward | None = None,
        params: str | Sequence[str] | None = None,
        dropout: str | None = None,
        memory_budget: int | str | None = None,
    ) -> None:
        v.module(_WHERE, model)
        counts = {"kernel_samples": kernel_samples, "check_every": check_every, "max_k": max_k}
        v.integers(_WHERE, k=k, every=every, steps=steps, seed=seed, **counts)
        v.integers(_WHERE, samples=samples, optional=True)
        v.numbers(_WHERE, tol=tol)
        v.numbers(_WHERE, budget=budget, grow_at=grow_at, optional=True)
        known = quantity in QUANTITIES
        v.require(known, _WHERE, f"quantity must be one of {QUANTITIES}", repr(quantity))
        v.require(every >= 1, _WHERE, "every must be >= 1", every)
        v.require(steps >= 1, _WHERE, "steps must be >= 1", steps)
        within = budget is None or 0 < budget < math.inf
        v.require(within, _WHERE, "budget must be None or > 0", budget)
        v.require(samples is None or samples >= 1, _WHERE, "samples must be >= 1", samples)
        v.require(max_k >= k, _WHERE, f"max_k must be >= k = {k}", max_k)
        needs = grow_at is None or optimizer is not None
        v.require(needs, _WHERE, "grow_at needs the optimizer", None)
        fixed = data is not None or quantity != "ntk"
        v.require(fixed, _WHERE, "quantity='ntk' needs a fixed probe set", "data=None")
        v.require(kernel_samples == 0 or data is not None, _WHERE, "drift needs data", "data=None")
        self.model = model
        self.loss = resolve(loss)
        own = self.loss is OWN_LOSS
        text = "loss=None, the model's own, needs quantity='hessian' (give loss= otherwise)"
        v.require(not own or quantity == "hessian", _WHERE, text, repr(quantity))
        self.options = {
            "forward": forward,
            "params": params,
            "dropout": dropout,
            "memory_budget": memory_budget,
            "seed": seed,
        }
        self.data = None if data is None else Problem.of(loss, data, _WHERE, **self.options)
        self.quantity = quantity
        self.every = every
        self.planned = steps
        self.samples = samples
        self.tol = tol
        self.optimizer, self.grow_at, self.max_k = optimizer, grow_at, max_k
        self.kernel_samples, self.batch_stats = kernel_samples, batch_stats
        self.out = None if out is None else Path(out).absolute()  # the loop may change its folder
        self.fresh, self.seed = fresh, seed
        self.overhead = Overhead(budget)
        self._record: BoundedRecord[Row] = BoundedRecord()
        self._made = self._missed = 0  # probes, and those that missed tol
        self._cost = self._costliest = 0.0  # seconds of the last probe, and of the longest one
        self.count = 0
        # one guard more than for a change of one step: between probes lie many
        self._top = TopTracker(k, tol=tol, guards=2 + k // 4, check_every=check_every, seed=seed)
        self._free = free.StepObservables(self.loss)
        self._norms = 0.0  # seconds spent on the norms of gradients
        self._last_probe = 0
        self._last_check = 0
        self._jumps = Jumps()
        self._jumped = False
        self._kernel: Tensor | None = None
        self._open = False

    @property
    def probes(self) -> list[Row]:
        """See the class."""
        return self._record.rows

    @property
    def steps_seen(self) -> list[dict[str, Any]]:
        """See the class."""
        return self._free.rows

    @property
    def k(self) -> int:
        """Eigenvalues followed at present."""
        return self._top.k

    def __enter__(self) -> CurvatureTracker:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the clock; without a budget and with a fixed probe set, probe the start."""
        self._open = True
        self.overhead.enter()
        if self.overhead.budget is None and self.data is not None:
            self._probe(self.data)
        self.overhead.leave()

    def step(self, loss: Tensor | float | None = None, *, batch: Any = None) -> Row | None:
        """To be called after every optimizer step; returns the probe's record if one was made.

        Args:
            loss: the loss that this step used, for r_t and lambda_r.
            batch: of this step, in any form of ``data``; needed where no fixed probe set was given.
        """
        if not self._open:
            self.start()
        self.overhead.enter()
        if loss is not None:
            eta, plain = free.learning_rate(self.optimizer), free.is_plain_descent(self.optimizer)
            gradient = self._squared_gradient()
            value = loss.item() if isinstance(loss, Tensor) else float(loss)
            self._free.follow(self.count, value, gradient, eta, plain)
            norm = None if gradient is None else math.sqrt(gradient)
            self._jumped |= self._jumps.follow(loss=value, gradient=norm)
        self.count += 1
        made = None
        if self._due():
            data = self.data if self.data is not None else batch
            v.require(data is not None, f"{_WHERE}.step", "batch is needed without data", None)
            if not isinstance(data, Problem):
                data = Problem.of(self.loss, data, f"{_WHERE}.step", **self.options)
            made = self._probe(data)
        self.overhead.leave()
        return made

    __call__ = step

    def _squared_gradient(self) -> float | None:
        """|g|^2, at as many steps as its share of a budget pays for."""
        began = self.overhead.clock()
        budget = self.overhead.budget
        if budget is not None and self._norms > _FREE_SHARE * budget * self.overhead.training:
            return None
        value = free.squared_gradient(self.model)
        self._norms += self.overhead.clock() - began
        return value

    def _due(self) -> bool:
        waited = self._jumped or self.count - self._last_probe >= self.every
        if self.overhead.budget is None:
            return waited or not self.probes
        if self.count < _TIMED_STEPS:
            return False
        if not self.probes:
            return True
        return waited and self.overhead.affords(self._costliest)

    @no_autocast()
    def _probe(self, data: Problem) -> Row:
        began = self.overhead.clock()
        with torch.no_grad():
            try:
                row = self._measure(self._selected(data))
            except v.NotFinite:
                # training that diverges is no fault of the loop that is watched
                row = self._row([math.nan] * self.k)
        self._last_probe = self.count
        self._jumps.probed()
        self._jumped = False
        self._cost = self.overhead.clock() - began
        self._costliest = max(self._costliest, self._cost)
        self._record.append(row)
        self._made += 1
        self._missed += "missed" in row["flags"]
        smallest = (row["eta"] or 0.0) * row["values"][-1]
        if self.grow_at is not None and smallest > self.grow_at and self.k < self.max_k:
            self._top.grow(self.k + 1)
        return row

    def _selected(self, data: Problem) -> Problem:
        """The probe samples; with a budget their number is chosen once."""
        if self.overhead.budget is not None and self.samples is None:
            still = with_batch_stats(self.model, "running")  # leaves running averages alone
            began = self.overhead.clock()
            data.outputs(still)
            forward = self.overhead.clock() - began
            step = self.overhead.training / self.count
            allowed = _FIRST_SHARE * self.overhead.budget * self.planned * step
            share = min(1.0, allowed / max(_COLD_FORWARDS * forward, 1e-12))
            n = data.n_samples
            self.samples = max(min(_LEAST_SAMPLES, n), int(share * n))
        return data.first(self.samples)

    def _measure(self, data: Problem) -> Row:
        drawn = data.dropout is not None
        still = batch_stats_held(self.model, self.batch_stats, data.outputs, drawn=drawn)
        with still as (held, policy):
            options = {**data.options, "batch_stats": policy, "check": not self.probes}
            return self._measured(held, data, options)

    def _row(self, values: list[float]) -> Row:
        """A row with what every probe has; the rest not measured yet."""
        eta = free.learning_rate(self.optimizer)
        return {
            "step": self.count,
            "values": values,
            "errors": values,
            "index_check": "none",
            "products": 0,
            "flags": ["diverged"],
            "eta": eta,
            "eta_lambda": None if eta is None else eta * values[0],
            "weight_norm": weight_norm(self.model),
            "inactive": None,
            "top_shares": None,
            "drift": None,
            "drift_norm": None,
        }

    def _measured(self, held: nn.Module, data: Problem, options: dict[str, Any]) -> Row:
        with ActivityWatch(held) as watch:  # in the forward pass that freezes the model
            operator = self._operator(held, data, options)
        followed = self._followed(operator)
        found = self._top.update(followed, check=self._jumped)
        inherited = found.index_check == "inherited"
        self._last_check = self._last_check if inherited else self.count
        row = self._row(found.eigenvalues.tolist())
        row["errors"], row["products"] = found.errors.tolist(), found.matvecs
        row["index_check"], row["flags"] = found.index_check, self._flags(found)
        if inherited:
            row["index_check"] = f"inherited since step {self._last_check}"
        row["top_shares"] = self._shares(operator, followed, found, data.y)
        if watch.watches:
            active = watch.found(data.n_samples) or self._activity(data)
            row["inactive"] = None if active is None else active.inactive
        if self.kernel_samples:
            few = data.first(self.kernel_samples)
            kernel = NTK(held, few.x, **options).dense(outputs="trace")
            self._kernel = kernel if self._kernel is None else self._kernel
            row["drift"], row["drift_norm"] = free.kernel_drift(kernel, self._kernel)
        return row

    def _activity(self, data: Problem) -> Activity | None:
        """By a forward pass of its own, which leaves running averages alone."""
        drawn = data.dropout is not None
        still = with_batch_stats(self.model, self.batch_stats, data.outputs, drawn=drawn)
        return activity(still, data.x, data.outputs)[1]

    def _operator(self, model: nn.Module, data: Problem, options: dict[str, Any]) -> Any:
        if self.quantity == "ntk":
            return NTK(model, data.x, **options)
        kind = GGN if self.quantity == "ggn" else Hessian
        return kind(model, self.loss, data.data, **options)

    def _followed(self, operator: Any) -> Any:
        """The smaller space where there is one: its vectors serve, nothing is lifted."""
        dual = operator.dual() if hasattr(operator, "dual") else None
        if dual is None:
            return operator
        if self.data is None:
            # another batch has another sample space: follow the vectors of parameter space
            return _WithoutDual(operator)
        return dual.operator if self.k <= dual.operator.shape[0] else operator

    def _flags(self, found: EigshResult) -> list[str]:
        flags = [] if found.index_check == "inherited" else ["checked"]
        return flags if found.converged else [*flags, "missed"]

    def _shares(
        self, operator: Any, followed: Any, found: EigshResult, y: Any
    ) -> list[float] | None:
        if isinstance(operator, Hessian) or not isinstance(self.loss, SquaredLoss):
            return None
        f = operator.linearization.snapshot.as_returned(operator.linearization.outputs)
        targets = self.loss.targets(f, y)
        residual = (f - targets).reshape(-1, 1)
        if isinstance(followed, (NTK, DualGGN)):  # the same space for a squared loss
            parts = found.eigenvectors.double().T @ residual.double()
            return (parts.square() / residual.double().square().sum())[:, 0].tolist()
        gradient = operator.linearization.vjp(residual / self.loss.normaliser(f, y))[:, 0]
        value = self.loss.value(f, targets).item()
        return free.top_shares(found.eigenvectors, found.eigenvalues, gradient, value)

    def report(self) -> str:
        """What was probed, what it cost, and what was chosen, in one sentence."""
        products = sorted(row["products"] for row in self.probes) or [0]
        where = "the current batch" if self.data is None else "the probe set"
        number = "all" if self.samples is None else str(self.samples)
        budget = self.overhead.budget
        allowed = "" if budget is None else f" (budget {budget:.0%})"
        steps = [row["step"] for row in self.probes]
        gaps = sorted(b - a for a, b in itertools.pairwise(steps)) or [self.every]
        return (
            f"{self._made} probes of the {self.quantity} in {self.count} steps, on {number} "
            f"samples of {where} in full precision, every {gaps[len(gaps) // 2]} steps "
            f"(median); {products[len(products) // 2]} products a probe (median, at most "
            f"{products[-1]}); {self._missed} missed tol; overhead {self.overhead.share:.1%} of "
            f"training time{allowed}"
        )

    def close(self) -> None:
        """Stop; writes the run folder where ``out`` was given."""
        if self._open and self.out is not None:
            config = {
                "model": type(self.model).__name__,
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "loss": self.loss.name,
                "quantity": self.quantity,
                "every": self.every,
                "budget": self.overhead.budget,
                "tol": self.tol,
                "seed": self.seed,
            }
            times = {
                "training": self.overhead.training,
                "probing": self.overhead.probing,
                "report": self.report(),
            }
            write_run(self.out, self.fresh, config, self.probes, self.steps_seen, times)
        self._open = False

    def plot(self, path: Path | str | None = None) -> Any:
        """Eigenvalues with 2/eta, and the loss, against the step: a matplotlib Figure.

        Raises:
            RuntimeError: matplotlib is missing (the message names the extra), or ``path`` cannot be
                written.
        """
        from catapult_ext.figures.curvature import curvature_figure

        figure = curvature_figure(
            [dict(row) for row in self.probes], self.steps_seen, self.quantity
        )
        if path is not None:
            with writing(path):
                figure.savefig(path, dpi=150)
        return figure


class _WithoutDual:
    """An operator seen through shape, dtype, device and @ only."""

    def __init__(self, operator: Any) -> None:
        self._operator = operator
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self._operator @ vectors
