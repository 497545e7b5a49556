"""CurvatureTracker: the top of the spectrum along any training loop, within an overhead budget."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._model_call import Forward
from catapult_ext._shown import number
from catapult_ext.eig import TopTracker
from catapult_ext.figures.drawn import Drawn
from catapult_ext.losses import OWN_LOSS, resolve
from catapult_ext.models import with_batch_stats
from catapult_ext.probes import free
from catapult_ext.probes.curvature_probe import CurvatureProbe
from catapult_ext.probes.edge_meter import EdgeMeter
from catapult_ext.probes.edge_row import EdgeRow
from catapult_ext.probes.jumps import Jumps
from catapult_ext.probes.late_numbers import LateNumbers
from catapult_ext.probes.optimizer_steps import OptimizerSteps
from catapult_ext.probes.overhead import Overhead
from catapult_ext.probes.problem import Problem
from catapult_ext.probes.record import BoundedRecord, Row, table_row, write_run
from catapult_ext.probes.step_metric import has_stepped, is_adaptive
from catapult_ext.probes.tracker_options import check_options

_WHERE = "CurvatureTracker"
_TIMED_STEPS = 3  # a budget is split once so many steps have been timed
_LEAST_SAMPLES = 16
_FREE_SHARE = 1 / 3  # of a budget, for the norms of gradients


class CurvatureTracker(Drawn):
    """Top-k eigenvalues of the GGN, Hessian or NTK while a model trains, in any loop.

    Call :meth:`step` (or the tracker) once after every optimizer step, before gradients are zeroed.
    Probes are warm-started (see :class:`~catapult_ext.TopTracker`); the model, its gradients, modes
    and buffers are left as they are.  Once a probe has been made, none ends the loop: one that
    fails is a row of NaN with the flag ``failed`` and its reason, and a RuntimeWarning.

    With ``optimizer=`` of an adaptive class, or of groups with different rates, the eigenvalues are
    those of P^-1/2 G P^-1/2 (H in place of G), P the optimizer's own preconditioner, and
    ``threshold`` is the k* with which ``eta_lambda`` compares
    (:func:`catapult_ext.stability_threshold`).

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
        optimizer: read for the rate of the step that was taken, its preconditioner and k*; needed
            by ``grow_at``, r_t and ``full_batch``.
        preconditioned: whether eigenvalues are taken in the optimizer's metric.  None: where it is
            known and not the identity; an adaptive optimizer's first probe then comes after its
            first step.  True asks for it, False leaves it out.
        full_batch: whether every step uses the same data, without dropout or augmentation: then
            ``zeta`` of every step follows from the losses (:class:`~catapult_ext.EdgeMeter`).
        grow_at: follow one more eigenvalue while eta times the smallest exceeds this (e.g. 1.5).
        max_k: most eigenvalues followed.
        kernel_samples: compare the trace kernel of so many probe samples with that at the first
            probe (drift); 0 for none.
        batch_stats: what batch normalisation means, ``models.BATCH_STATS``; None follows the mode
            that each layer is in at the probe: "coupled" in training, "running" in evaluation.
        forward: ``forward(model, x)`` returns the outputs; None calls the model.
        params: names or patterns of the parameters to differentiate by; None for all.
        dropout: None turns dropout off, ``"fixed"`` takes one fixed mask where it is on.
        memory_budget: of the operators.
        check_every: see :class:`~catapult_ext.TopTracker`.  Where the loss or the norm of the
            gradient exceeds twice the largest value since the probe before the last one, a checked
            probe is made at once (with ``budget``: as soon as it pays for one; on a GPU: as soon as
            the numbers have arrived, for which no step waits).
        seed: of random vectors.
        out: run folder to write at the end; needs to be new or ``fresh``.
        fresh: replace an earlier run in ``out``.

    Attributes:
        probes: one :class:`~catapult_ext.probes.record.Row` a probe, a dictionary: ``step``,
            ``values`` and ``errors`` (k), ``index_check``, ``products``, ``flags``, ``eta``,
            ``eta_lambda``, ``preconditioned``, ``threshold``, ``reason``, ``weight_norm``,
            ``inactive``, ``top_shares`` of a squared loss, ``drift`` and ``drift_norm``.
        steps_seen: one dictionary a step where a loss was given: ``loss``, ``r``, ``lambda_r``
            (:class:`~catapult_ext.probes.free.StepObservables`), with ``full_batch`` also ``zeta``
            and why there is none, ``zeta_flags``.  Of both lists the first 4096 rows
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
        preconditioned: bool | None = None,
        full_batch: bool = False,
        grow_at: float | None = None,
        max_k: int = 16,
        kernel_samples: int = 0,
        batch_stats: str | None = None,
        check_every: int = 10,
        seed: int = 0,
        out: Path | str | None = None,
        fresh: bool = False,
        forward: Forward | None = None,
        params: str | Sequence[str] | None = None,
        dropout: str | None = None,
        memory_budget: int | str | None = None,
    ) -> None:
        check_options(
            model,
            quantity=quantity,
            fixed=data is not None,
            k=k,
            every=every,
            budget=budget,
            steps=steps,
            samples=samples,
            tol=tol,
            optimizer=optimizer,
            preconditioned=preconditioned,
            grow_at=grow_at,
            max_k=max_k,
            kernel_samples=kernel_samples,
            check_every=check_every,
            seed=seed,
        )
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
        self.grow_at, self.max_k = grow_at, max_k
        self.preconditioned, self.full_batch = preconditioned, full_batch
        self.out = None if out is None else Path(out).absolute()  # the loop may change its folder
        self.fresh, self.seed = fresh, seed
        self.overhead = Overhead(budget)
        self._record: BoundedRecord[Row] = BoundedRecord()
        self._made = self._missed = 0  # probes, and those that missed tol
        self._cost = self._costliest = 0.0  # seconds of the last probe, and of the longest one
        self.count = 0
        # one guard more than for a change of one step: between probes lie many
        self._top = TopTracker(k, tol=tol, guards=2 + k // 4, check_every=check_every, seed=seed)
        self._probed = CurvatureProbe(
            model,
            self.loss,
            quantity,
            self._top,
            fixed=data is not None,
            preconditioned=preconditioned,
            kernel_samples=kernel_samples,
            batch_stats=batch_stats,
        )
        self.optimizer = optimizer
        self._edge: EdgeMeter | None = None
        self._free = free.StepObservables(self.loss)
        self._late = LateNumbers(self._arrived)
        self._norms = 0.0  # seconds spent on the norms of gradients
        self._last_probe = 0
        self._jumps = Jumps()
        self._jumped = False
        self._open = self._warned = False

    @property
    def optimizer(self) -> Any:
        """The torch optimizer whose steps are followed, or None."""
        return self._probed.steps.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        self._probed.steps.close()
        self._probed.steps = OptimizerSteps(optimizer)

    @property
    def probes(self) -> list[Row]:
        """See the class."""
        return self._record.rows

    @property
    def steps_seen(self) -> list[dict[str, Any]]:
        """See the class."""
        self._late.take_all()
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
        """Start the clock; without a budget and with a fixed probe set, probe the start.

        Raises:
            ValueError: ``full_batch`` without an optimizer.
        """
        if self.full_batch and self._edge is None:
            v.require(self.optimizer is not None, _WHERE, "full_batch needs the optimizer", None)
            self._edge = EdgeMeter(self.model, self.optimizer, full_batch=True)
        self._open = True
        self.overhead.enter()
        if self.overhead.budget is None and self.data is not None and not self._waits():
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
        self._note(loss)
        self.count += 1
        made = None
        if self._due():
            self._late.take_all()
            self._wait()
            self.overhead.waited()  # on a GPU training is done only now
            data = self.data if self.data is not None else batch
            v.require(data is not None, f"{_WHERE}.step", "batch is needed without data", None)
            if not isinstance(data, Problem):
                data = Problem.of(self.loss, data, f"{_WHERE}.step", **self.options)
            made = self._probe(data)
        self.overhead.leave()
        return made

    __call__ = step

    def _note(self, loss: Tensor | float | None) -> None:
        """Take the loss and the gradient of a step; those of a GPU when they have arrived."""
        eta, plain = self._probed.steps.one_rate, free.is_plain_descent(self.optimizer)
        if isinstance(loss, Tensor) and loss.is_cuda and self._edge is None:
            gradient = self._squared_gradient()
            numbers = [loss] if gradient is None else [loss, gradient.to(loss.device)]
            self._late.put(numbers, self.count, eta, plain)
            self._late.take_arrived()
            return
        value = loss.item() if isinstance(loss, Tensor) else loss
        edge = None if self._edge is None else self._edge.step(value)
        if value is not None:
            gradient = self._squared_gradient()
            found = [float(value)] if gradient is None else [float(value), float(gradient)]
            self._arrived(found, self.count, eta, plain, self._zeta(edge))

    def _arrived(
        self,
        numbers: list[float],
        step: int,
        eta: float | None,
        plain: bool,
        zeta: dict[str, Any] | None = None,
    ) -> None:
        """Follow the loss and, where it was taken, the squared gradient of ``step``."""
        value, gradient = numbers[0], numbers[1] if len(numbers) > 1 else None
        self._free.follow(step, value, gradient, eta, plain, zeta)
        norm = None if gradient is None else math.sqrt(gradient)
        self._jumped |= self._jumps.follow(loss=value, gradient=norm)

    def _wait(self) -> None:
        """On a GPU, until it has done what it was given."""
        device = next((p.device for p in self.model.parameters()), None)
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    def _squared_gradient(self) -> Tensor | None:
        """|g|^2, at as many steps as its share of a budget pays for."""
        began = self.overhead.clock()
        budget = self.overhead.budget
        if budget is not None and self._norms > _FREE_SHARE * budget * self.overhead.training:
            return None
        value = free.squared_gradient(self.model)
        self._norms += self.overhead.clock() - began
        return value

    def _zeta(self, edge: EdgeRow | None) -> dict[str, Any]:
        """What the meter has completed of the last step."""
        if edge is None:
            return {}
        zeta = edge["zeta"] if math.isfinite(edge["zeta"]) else None
        return {"zeta": zeta, "zeta_flags": edge["flags"]}

    def _waits(self) -> bool:
        """Whether the optimizer has a preconditioner to come, and no state yet."""
        wanted = self.preconditioned is not False and self.quantity != "ntk"
        return wanted and is_adaptive(self.optimizer) and not has_stepped(self.optimizer)

    def _due(self) -> bool:
        if self._waits():
            return False
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
                row = self._probed.lost(self.count, "diverged")
            except Exception as error:
                if not self._probed.made:  # model, loss and data do not fit the probe
                    raise
                row = self._probed.lost(self.count, "failed", f"{type(error).__name__}: {error}")
                self._warn(row["reason"])
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
            self._wait()
            forward = self.overhead.clock() - began
            share = self.overhead.share_of_samples(forward, self.count, self.planned)
            n = data.n_samples
            self.samples = max(min(_LEAST_SAMPLES, n), int(share * n))
        return data.first(self.samples)

    def _measure(self, data: Problem) -> Row:
        return self._probed.measure(self.count, data, check=self._jumped)

    def _warn(self, reason: str | None) -> None:
        """Once: rows say the rest."""
        if not self._warned:
            text = f"catapult_ext.{_WHERE}: the probe after step {self.count} failed ({reason})"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        self._warned = True

    def _line(self) -> str:
        if not self.probes:
            return f"CurvatureTracker of the {self.quantity}: no probe yet, {self.count} steps"
        row = self.probes[-1]
        pairs = zip(row["values"], row["errors"], strict=True)
        last = ", ".join(f"{number(value)} +- {error:.1g}" for value, error in pairs)
        counts = f"{self._made} probes in {self.count} steps"
        return f"CurvatureTracker of the {self.quantity}: {counts}, last at {row['step']}: {last}"

    def _table(self) -> list[dict[str, Any]]:
        return [table_row(row) for row in self.probes]

    def _picture(self) -> Any:
        return self.plot() if self.probes else None

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
                "preconditioned": self.preconditioned,
                "full_batch": self.full_batch,
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
        if self._edge is not None:
            self._edge.close()
            self._edge = None
        self._probed.steps.close()
        self._open = False

    def _figure(self) -> Any:
        """Eigenvalues with k*/eta, the loss and zeta, against the step."""
        from catapult_ext.figures.curvature import curvature_figure

        return curvature_figure([dict(row) for row in self.probes], self.steps_seen, self.quantity)
