"""Train one network at many learning rates and follow its curvature: the learning-rate sweep."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext._validate import array, fail, integers, require
from catapult_ext.data import Dataset, as_dataset
from catapult_ext.experiments import storage
from catapult_ext.experiments.checks import WHERE, check_problem
from catapult_ext.experiments.curvature import top_space
from catapult_ext.experiments.linearised import linearised_sweep
from catapult_ext.experiments.ranks import Ranks
from catapult_ext.experiments.result import SweepResult
from catapult_ext.experiments.summary import summarise, verdict_of
from catapult_ext.experiments.training import Problem, descend, probe_schedule
from catapult_ext.probes import divergence_cut, hidden_width
from catapult_ext.runs import RunFolder


class Progress:
    """What a sweep tells while it runs; override what is of interest."""

    def begin(self, rates: list[float], steps: int, finished: int) -> None:
        """Rates in units of c, after lambda_0 is known; ``finished`` of them are done already."""

    def rate(self, index: int, c: float) -> None:
        """Learning rate number ``index`` starts."""

    def step(self, step: int, loss: float) -> None:
        """A step of the present rate was made."""

    def done(self, index: int, c: float, phase: str) -> None:
        """Learning rate number ``index`` ended in ``phase``."""

    def stage(self, name: str) -> None:
        """Something else starts: the initial kernel, the linearised net, the report."""


@dataclass(frozen=True)
class SweepConfig:
    """Settings of a sweep; model, loss and data come beside it.

    Attributes:
        c: learning rates in units of 1 / lambda_0 (give these or ``eta``), > 0.
        eta: learning rates as they are, > 0.
        steps: full-batch gradient steps of every rate.
        probe_factor: curvature is measured at steps 0, 1 and then at steps growing by this factor.
        tol: relative error bound asked for along the way (lambda_0: a tenth of it, at most 1e-4).
        top: dimension of the kernel's top eigenspace the residual is projected on; default O.
        cut: loss above which a run is divergent; default ``probes.divergence_cut``.
        linearised: also run the model linearised at its start (squared losses only).
    """

    c: tuple[float, ...] | None = None
    eta: tuple[float, ...] | None = None
    steps: int = 200
    probe_factor: float = 2.0
    tol: float = 1e-3
    top: int | None = None
    cut: float | None = None
    linearised: bool = False

    def __post_init__(self) -> None:
        if (self.c is None) == (self.eta is None):
            fail(WHERE, "give either c or eta", f"c={self.c}, eta={self.eta}", TypeError)
        name, rates = ("c", self.c) if self.c is not None else ("eta", self.eta)
        assert rates is not None
        require(len(rates) > 0, WHERE, f"{name} must hold at least one learning rate", rates)
        for rate in rates:
            require(math.isfinite(rate) and rate > 0, WHERE, f"{name} must be finite and > 0", rate)
        require(len(set(rates)) == len(rates), WHERE, f"{name} must hold distinct rates", rates)
        integers(WHERE, steps=self.steps)
        require(self.steps >= 1, WHERE, "steps must be >= 1", self.steps)
        require(self.probe_factor > 1, WHERE, "probe_factor must be > 1", self.probe_factor)
        require(0 < self.tol < 1, WHERE, "tol must be in (0, 1)", self.tol)
        require(self.top is None or self.top >= 1, WHERE, "top must be >= 1", self.top)
        require(self.cut is None or self.cut > 0, WHERE, "cut must be > 0", self.cut)

    def rates(self, lambda0: float) -> list[tuple[float, float]]:
        """(c, eta) of every learning rate, ascending."""
        if self.c is not None:
            return [(c, c / lambda0) for c in sorted(self.c)]
        return [(eta * lambda0, eta) for eta in sorted(self.eta or ())]


def sweep(
    model: nn.Module,
    data: Dataset | Sequence[Tensor],
    *,
    c: Sequence[float] | None = None,
    eta: Sequence[float] | None = None,
    steps: int = 200,
    loss: Any = "half_mse",
    out: Path | str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    group: Any = None,
    **settings: Any,
) -> SweepResult:
    """Train ``model`` by full-batch gradient descent at each learning rate, from the same start.

    Args:
        model: any module with (N, O) outputs and no active dropout; it is copied, not changed.
        data: a ``data.Dataset``, ``(x, y)`` or ``(x, y, x_test, y_test)``; y (N, O), one-hot for
            classes.
        c: learning rates in units of 1 / lambda_0: lazy below 2. Give these or ``eta``.
        eta: learning rates.
        steps: gradient steps of every rate.
        loss: see :func:`catapult_ext.losses.resolve`; lambda is the
            top eigenvalue of its Gauss-Newton matrix.
        out: run folder: every finished rate is stored at once, a killed sweep goes on where it
            was, and the summary, pictures and a report are written at the end (this needs the
            extra ``experiments``). None keeps the results in memory only.
        fresh: start anew in a folder that holds an earlier run.
        progress: told what happens.
        group: None, ``"world"`` or a torch.distributed group, whose ranks share out the rates;
            every rank makes the same call with the same ``out``, which all must see.
        **settings: the other fields of :class:`SweepConfig`.

    Returns:
        :class:`SweepResult`, rates ascending.

    Raises:
        TypeError: wrong types or dtypes, both or none of c and eta.
        ValueError: rates <= 0, sizes that do not fit, outputs that are not (N, O), a loss without a
            Gauss-Newton matrix.
        RuntimeError: a rank that failed or was lost (named); a run folder that cannot be used
            (``runs.RunFolderError``), or matplotlib missing with ``out``.

    Cost:
        One forward and backward pass per step and rate, and a warm-started eigenvalue solve per
        probe step (about log2(steps) of them).
    """
    config = SweepConfig(
        c=None if c is None else _rates("c", c),
        eta=None if eta is None else _rates("eta", eta),
        steps=steps,
        **settings,
    )
    return run(
        config,
        model,
        as_dataset(data, WHERE),
        loss,
        out=out,
        fresh=fresh,
        progress=progress,
        group=group,
    )


def _rates(name: str, values: object) -> tuple[float, ...]:
    """A sequence, array or tensor of rates as floats."""
    held = array(WHERE, name, values, torch.float64)
    require(held.dim() == 1, WHERE, f"{name} must be a list of rates", tuple(held.shape))
    return tuple(held.tolist())


def run(
    config: SweepConfig,
    model: nn.Module,
    data: Dataset,
    loss: Any = "half_mse",
    *,
    out: Path | str | None = None,
    fresh: bool = False,
    title: str = "Learning-rate sweep",
    progress: Progress | None = None,
    group: Any = None,
) -> SweepResult:
    """:func:`sweep` with its settings in a :class:`SweepConfig`."""
    resolved = check_problem(model, data, loss, config.linearised)
    progress = progress or Progress()
    identity = {
        "experiment": "sweep",
        "version": 1,
        **storage.describe(config),
        "loss": storage.describe_loss(loss),
        "model": str(model).splitlines(),
        "weights": storage.weights_digest(model),
        "data": data.name,
        "data_digest": data.fingerprint(),
    }
    if group is not None:
        require(out is not None, WHERE, "group needs out, a run folder that all ranks see", out)
        work = _Sweep(config, model, data, resolved, None, progress)
        return _shared(group, identity, work, out, fresh, title)
    if out is None:
        return _Sweep(config, model, data, resolved, None, progress).result()
    storage.require_reports()
    with RunFolder(out, identity, environment=storage.environment(), fresh=fresh) as folder:
        return _Sweep(config, model, data, resolved, folder, progress).reported(title)


def _shared(
    group: Any, identity: dict[str, Any], work: _Sweep, out: Any, fresh: bool, title: str
) -> SweepResult:
    """One sweep on all ranks of ``group``: rank 0 opens the folder first, and reports last."""
    storage.require_reports()
    with Ranks.of(group, WHERE) as ranks:
        first = ranks.rank == 0
        if not first:
            ranks.wait("open")
        with RunFolder(
            out,
            identity,
            environment=storage.environment(),
            fresh=fresh and first,
            joined=not first,
        ) as folder:
            ranks.tell("open")
            work.folder, work.ranks = folder, ranks
            result = work.reported(title) if first else work.result()
            ranks.meet("end")
    return result


@dataclass
class _Sweep:
    """One sweep in progress: computes what the folder does not hold yet."""

    config: SweepConfig
    model: nn.Module
    data: Dataset
    loss: losses.Loss
    folder: RunFolder | None
    progress: Progress
    ranks: Ranks | None = None

    def reported(self, title: str) -> SweepResult:
        """:meth:`result`, written to the folder."""
        assert self.folder is not None
        result = self.result()
        self.progress.stage("writing the report")
        storage.write_reports(self.folder, result, title)
        return result

    def result(self) -> SweepResult:
        initial = self._load("initial")
        rates = self.config.c or self.config.eta or ()
        names = [f"rate_{i:04d}" for i in range(len(rates))]
        parts = {n: self._load(n) for n in (*names, "linearised")}
        wanted = [*names, "linearised"] if self.config.linearised else names
        if initial is None or any(parts[n] is None for n in wanted):
            initial = self._compute(initial, names, parts)
        if self.ranks is not None:
            self._gather(wanted, parts)
        records: list[Any] = [parts[n] for n in names]
        both = parts["linearised"]
        linear = both["rates"] if self.config.linearised and both is not None else None
        summary = summarise(initial, records, linear, self.config.steps)
        path = None if self.folder is None else self.folder.path
        return SweepResult(self.config, summary, records, linear, path)

    def _compute(
        self, initial: dict[str, Any] | None, names: list[str], parts: dict[str, Any]
    ) -> dict[str, Any]:
        self.progress.stage("the kernel at the start")
        start = time.perf_counter()
        problem, now = self._problem()
        if initial is None:
            initial = self._initial(now, start)
        rates = self.config.rates(initial["lambda0"])
        missing = [i for i, name in enumerate(names) if parts[name] is None]
        self.progress.begin([c for c, _ in rates], self.config.steps, len(names) - len(missing))
        for i in missing:
            if not self._mine(names[i]):
                continue
            c, eta = rates[i]
            self.progress.rate(i, c)
            start = time.perf_counter()
            record = {"c": c, **descend(problem, eta, self._step)}
            parts[names[i]] = record = self._save(names[i], record, start)
            self.progress.done(i, c, verdict_of(record, initial["lambda0"]).phase)
        if self.config.linearised and parts["linearised"] is None and self._mine("linearised"):
            self.progress.stage("the net linearised at the start")
            start = time.perf_counter()
            linear = {"rates": linearised_sweep(problem, [eta for _, eta in rates])}
            parts["linearised"] = self._save("linearised", linear, start)
        return initial

    def _initial(self, found: dict[str, Any], start: float) -> dict[str, Any]:
        """The start as rank 0 found and stored it: the same rates on all ranks."""
        if self.ranks is None or self.ranks.rank == 0:
            found = self._save("initial", found, start)
        if self.ranks is not None:
            if self.ranks.rank == 0:
                self.ranks.tell("initial")
            self.ranks.wait("initial")
            found = self._load("initial") or found
        return found

    def _mine(self, name: str) -> bool:
        return self.ranks is None or self.ranks.claim(name)

    def _step(self, step: int, loss: float) -> None:
        if self.ranks is not None:
            self.ranks.check()
        self.progress.step(step, loss)

    def _gather(self, wanted: list[str], parts: dict[str, Any]) -> None:
        """Wait for all ranks, read what they stored, and note their times on rank 0."""
        assert self.ranks is not None
        self.progress.stage("waiting for the other ranks")
        self.ranks.meet("parts")
        for name in wanted:
            parts[name] = parts[name] or self._load(name)
        if self.folder is not None and self.ranks.rank == 0:
            for name in ("initial", *wanted):
                seconds = self.ranks.told(f"seconds/{name}")
                if seconds is not None:
                    storage.note_time(self.folder, name, float(seconds))

    def _problem(self) -> tuple[Problem, dict[str, Any]]:
        model = copy.deepcopy(self.model)
        x, y = self.data.train
        k = self.config.top or self.data.outputs
        top = top_space(model, self.loss, x, y, k, min(self.config.tol / 10, 1e-4))
        with torch.no_grad():
            loss0 = self.loss.value(model(x), y).item()
        require(top.lambda0 > 0, WHERE, "lambda_0 must be > 0 (a constant model?)", top.lambda0)
        width = hidden_width(model)
        cut = self.config.cut or divergence_cut(loss0, width, top.lambda0)
        initial = {
            "lambda0": top.lambda0,
            "lambda0_error": top.error,
            "top_ratios": top.ratios,
            "loss0": loss0,
            "cut": cut,
            "width": width,
            "parameters": sum(p.numel() for p in model.parameters()),
            "samples": len(x),
            "outputs": self.data.outputs,
        }
        state = {name: v.detach().clone() for name, v in model.state_dict().items()}
        steps = probe_schedule(self.config.steps, self.config.probe_factor)
        problem = Problem(
            model, state, self.loss, self.data, top, cut, self.config.steps, steps, self.config.tol
        )
        return problem, initial

    def _load(self, name: str) -> dict[str, Any] | None:
        return None if self.folder is None else self.folder.load_part(name)

    def _save(self, name: str, record: dict[str, Any], start: float) -> dict[str, Any]:
        """Store a part; returned as read back, so that a resumed run sees exactly the same."""
        if self.folder is None:
            return record
        self.folder.save_part(name, record)
        seconds = time.perf_counter() - start
        if self.ranks is None:
            storage.note_time(self.folder, name, seconds)
        else:  # one file, which only rank 0 writes
            self.ranks.tell(f"seconds/{name}", str(seconds))
        stored = self.folder.load_part(name)
        assert stored is not None
        return stored
