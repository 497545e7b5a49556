"""CurvatureTracker: the top of the spectrum along any training loop, within an overhead budget."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._model_call import Forward
from catapult_ext._state import attributes, check_state, put
from catapult_ext.figures.drawn import Drawn
from catapult_ext.linops.model.policy import Dropout
from catapult_ext.losses import OWN_LOSS, resolve
from catapult_ext.models import with_batch_stats
from catapult_ext.models.batch_norm import BatchStats
from catapult_ext.probes.curvature_probe import CurvatureProbe, Quantity
from catapult_ext.probes.edge_meter import EdgeMeter
from catapult_ext.probes.loggers import Logging, probe_numbers
from catapult_ext.probes.optimizer_steps import OptimizerSteps
from catapult_ext.probes.overhead import Overhead
from catapult_ext.probes.problem import Problem
from catapult_ext.probes.record import BoundedRecord, Row, table_rows
from catapult_ext.probes.step_metric import has_stepped, is_adaptive
from catapult_ext.probes.step_notes import StepNotes
from catapult_ext.probes.tracked_folder import TrackedFolder
from catapult_ext.probes.tracker_options import check_options, probe_tracker
from catapult_ext.probes.tracker_report import last_probe, sentence

_WHERE = "CurvatureTracker"
_TIMED_STEPS = 3  # timed steps after which a budget is split
_LEAST_SAMPLES = 16
_FORMAT = "catapult_ext CurvatureTracker 1"
_COUNTED = ("count", "samples", "_made", "_missed", "_cost", "_costliest", "_last_probe")
_STATE = (*_COUNTED, "_began", "_warned")
_PARTS = ("_record", "_top", "_probed", "_notes", "overhead")


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

    A job that may be preempted keeps ``tracker.state_dict()`` in its checkpoint, beside those of
    model and optimizer.  A tracker of the same arguments that has loaded it, before its first step,
    gives the rows that an uninterrupted one gives, to the bit on the same machine.

    Args:
        model: the module trained.
        loss: the loss trained (:func:`catapult_ext.losses.resolve`); with ``quantity="hessian"``
            also None, the loss that the model returns.
        data: fixed probe set ``(x, y)``, or another form that
            :func:`~catapult_ext._batches.batch_of` takes; None probes the ``batch`` given to
            :meth:`step`.
        quantity: ``"ggn"``, ``"hessian"`` or ``"ntk"`` (sum convention; needs a fixed probe set).
        k: eigenvalues followed; ``grow_at`` may raise it to ``max_k``.
        every: steps from probe to probe; with ``budget``, at least.
        budget: most that probing may cost, as a share of training time, or None.  With a budget the
            first probe comes after three timed steps and may run into debt; from then on a probe is
            made only when even a checked solve would keep within it.  Unless ``samples`` is given,
            the number of probe samples is such that a solve costs at most a tenth of the budget of
            ``steps`` steps.  r_t and lambda_r are taken at as many steps as a third of it pays for.
        steps: length of training that a budget is laid out for.
        samples: number of probe samples to use, the first ones.
        tol: relative error asked of checked probes.
        between: relative error asked of the probes between them; None for ten times ``tol``.
        optimizer: read for the rate of the step that was taken, its preconditioner and k*; needed
            by ``grow_at``, r_t and ``full_batch``.
        preconditioned: whether eigenvalues are taken in the optimizer's metric.  None: where it is
            known and not the identity; an adaptive optimizer's first probe then comes after its
            first step.  True asks for it, False leaves it out.
        full_batch: whether every step uses the same data, without dropout or augmentation: then
            ``zeta`` of every step follows from the losses (:class:`~catapult_ext.EdgeMeter`).
        grow_at: follow one more eigenvalue while eta times the smallest exceeds this (e.g. 1.5).
        max_k: most eigenvalues followed.
        kernel_samples: number of probe samples whose trace kernel is compared with that of the
            first probe (drift); 0 for none.
        batch_stats: treatment of batch normalisation, ``models.BATCH_STATS``; None follows the mode
            that each layer is in at the probe: "coupled" in training, "running" in evaluation.
        forward: ``forward(model, x)`` returns the outputs; None calls the model.
        params: names or patterns of the parameters to differentiate by; None for all.
        dropout: None turns dropout off, ``"fixed"`` takes one fixed mask where it is on.
        memory_budget: memory budget of the operators.
        check_every: see :class:`~catapult_ext.TopTracker`.  Where the loss or the norm of the
            gradient exceeds twice the largest value since the probe before the last one, a checked
            probe is made at once (with ``budget``: as soon as it pays for one; on a GPU: as soon as
            the numbers have arrived, for which no step waits).
        seed: seed of random vectors.
        out: run folder, new or ``fresh`` or that of the run whose state was loaded.  Each probe is
            a line of ``probes.jsonl`` once it is made, so that a kill loses one at most; tables and
            picture come at the end.
        fresh: replace an earlier run in ``out``.
        log: where the numbers of each probe go: a W&B run, a SummaryWriter, a function of (numbers,
            step) and more (:func:`~catapult_ext.probes.loggers.logger_of`).

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
        RunFolderError: by ``start``, the folder is in use or holds another run; by ``close``, it
            cannot be written.  (A probe that cannot be written is a RuntimeWarning.)
        TypeError: data that is no pair; see also
            :class:`~catapult_ext.linops.model.snapshot.Snapshot`.

    Cost:
        Freezing the model (about 3 forward passes) and, for slow drift, k + guards products of 2-3
        (NTK, GGN) or 4-5 (Hessian) forward passes; every ``check_every``-th probe a checked solve.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: object,
        data: Any = None,
        *,
        quantity: Quantity = "ggn",
        k: int = 1,
        every: int = 10,
        budget: float | None = None,
        steps: int = 500,
        samples: int | None = None,
        tol: float = 1e-3,
        between: float | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        preconditioned: bool | None = None,
        full_batch: bool = False,
        grow_at: float | None = None,
        max_k: int = 16,
        kernel_samples: int = 0,
        batch_stats: BatchStats | None = None,
        check_every: int = 10,
        seed: int = 0,
        out: Path | str | None = None,
        fresh: bool = False,
        log: Any = None,
        forward: Forward | None = None,
        params: str | Sequence[str] | None = None,
        dropout: Dropout | None = None,
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
            between=between,
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
        self._log = Logging(log, _WHERE)
        self.overhead = Overhead(budget)
        self._record: BoundedRecord[Row] = BoundedRecord()
        self._made = self._missed = 0  # probes, and those that missed tol
        self._cost = self._costliest = 0.0  # seconds of the last probe, and of the longest one
        self.count = 0
        self._top = probe_tracker(k, tol, between, check_every, seed)
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
        self._notes = StepNotes(model, self.loss, self.overhead)
        self._edge_state: dict[str, Any] | None = None  # loaded, for a meter to come
        self._folder: TrackedFolder | None = None
        self._last_probe = 0
        self._open = self._began = self._resumed = False
        self._warned = False

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
        """One row per probe; the class lists its keys."""
        return self._record.rows

    @property
    def steps_seen(self) -> list[dict[str, Any]]:
        """One dictionary per step with a loss; the class lists its keys."""
        return self._notes.rows

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
            RunFolderError: see ``out``.
        """
        if self.full_batch:
            v.require(self.optimizer is not None, _WHERE, "full_batch needs the optimizer", None)
            self._watch_edge()
        if self.out is not None and self._folder is None:
            earlier = self.probes if self._resumed or self.count else None
            self._folder = TrackedFolder(
                self.out, self.fresh, self._config(), earlier, count=self.count
            )
        self._open = self._began = True
        self.overhead.enter()
        begins = self.overhead.budget is None and self.data is not None and not self._resumed
        self._resumed = False
        if begins and not self._waits():
            assert self.data is not None
            self._probe(self.data)
        self.overhead.leave()

    def _watch_edge(self) -> None:
        """Make the meter of zeta, with a state that was loaded."""
        if self._notes.edge is None:
            edge = EdgeMeter(self.model, self.optimizer, full_batch=True)
            if self._edge_state is not None:
                edge.load_state_dict(self._edge_state)
            self._notes.edge, self._edge_state = edge, None

    def step(self, loss: Tensor | float | None = None, *, batch: Any = None) -> Row | None:
        """To be called after every optimizer step; returns the probe's record if one was made.

        Args:
            loss: the loss that this step used, for r_t and lambda_r.
            batch: of this step, in any form of ``data``; needed where no fixed probe set was given.
        """
        if not self._open:
            self.start()
        self.overhead.enter()
        self._notes.take(loss, self.count, self._probed.steps)
        self.count += 1
        made = None
        if self._due():
            self._notes.take_all()
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

    def _wait(self) -> None:
        """On a GPU, until it has done what it was given."""
        device = next((p.device for p in self.model.parameters()), None)
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    def _waits(self) -> bool:
        """Whether the optimizer has a preconditioner to come, and no state yet."""
        wanted = self.preconditioned is not False and self.quantity != "ntk"
        return wanted and is_adaptive(self.optimizer) and not has_stepped(self.optimizer)

    def _due(self) -> bool:
        if self._waits():
            return False
        waited = self._notes.jumped or self.count - self._last_probe >= self.every
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
        self._notes.probed()
        self._cost = self.overhead.clock() - began
        self._costliest = max(self._costliest, self._cost)
        self._record.append(row)
        if self._folder is not None:
            self._folder.append(row)
        self._log(self.numbers(row), row["step"])
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
        return self._probed.measure(self.count, data, check=self._notes.jumped)

    def _warn(self, reason: str | None) -> None:
        """Once: rows say the rest."""
        if not self._warned:
            text = f"catapult_ext.{_WHERE}: the probe after step {self.count} failed ({reason})"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        self._warned = True

    def numbers(self, row: Row) -> dict[str, float]:
        """Numbers of a probe to log: eigenvalues, errors, eta lambda over k*, zeta, overhead."""
        return probe_numbers(row, self._notes.last_zeta(), self.overhead.share)

    def _line(self) -> str:
        return last_probe(self.quantity, self.probes, self._made, self.count)

    def _table(self) -> list[dict[str, Any]]:
        return table_rows(self.probes)

    def _picture(self) -> Any:
        return self.plot() if self.probes else None

    def report(self) -> str:
        """One sentence on the probes made, their cost, and the settings chosen."""
        where = "the current batch" if self.data is None else "the probe set"
        number = "all" if self.samples is None else str(self.samples)
        what = f"the {self.quantity} in {self.count} steps, on {number} samples of {where}"
        made, missed = self._made, self._missed
        return sentence(what, self.probes, made, missed, self.every, self.overhead)

    def _identity(self) -> dict[str, Any]:
        """Facts that a loaded state must share with this tracker."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {"format": _FORMAT, "quantity": self.quantity, "parameters": parameters}

    def state_dict(self) -> dict[str, Any]:
        """All that later probes depend on and all rows: tensors, numbers, texts, lists of them."""
        parts = {name.lstrip("_"): getattr(self, name).state_dict() for name in _PARTS}
        edge = self._notes.edge
        meter = self._edge_state if edge is None else edge.state_dict()
        return {**self._identity(), **attributes(self, _STATE), **parts, "edge": meter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a :meth:`state_dict`, before the first step, after that of the model.

        Raises:
            TypeError, ValueError: the state of something else, of another quantity or of a model
                with another number of parameters; a tracker that has begun.
        """
        where = f"{_WHERE}.load_state_dict"
        v.require(not self._open, where, "the tracker must not have begun", "an open one")
        check_state(where, state, self._identity(), (*_STATE, *_PARTS, "edge"))
        put(self, _STATE, state)
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name.lstrip("_")])
        self._edge_state, self._resumed = state["edge"], self._began
        if self._edge_state is not None and self.optimizer is not None:
            self._watch_edge()  # the next step may come before start()

    def _config(self) -> dict[str, Any]:
        return {
            "model": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "loss": self.loss.name,
            "quantity": self.quantity,
            "preconditioned": self.preconditioned,
            "full_batch": self.full_batch,
            "every": self.every,
            "budget": self.overhead.budget,
            "tol": self.tol,
            "between": self._top.between,
            "seed": self.seed,
        }

    def close(self) -> None:
        """Stop; completes the run folder where ``out`` was given."""
        try:
            if self._folder is not None:
                times = {
                    "training": self.overhead.training,
                    "probing": self.overhead.probing,
                    "report": self.report(),
                }
                self._folder.finish(self.probes, self.steps_seen, times)
                self._folder.close()
                self._folder = None  # kept after an error: the next call writes what is missing
        finally:
            self._notes.close()
            self._probed.steps.close()
            self._open = False

    def _figure(self) -> Any:
        """Eigenvalues with k*/eta, the loss and zeta, against the step."""
        from catapult_ext.figures.curvature import curvature_figure

        return curvature_figure([dict(row) for row in self.probes], self.steps_seen, self.quantity)
