"""Train one network at many learning rates and follow its curvature: the learning-rate sweep."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext._processes import Ranks
from catapult_ext._store import RunFolder, environment, weights_digest
from catapult_ext._validate import array, require
from catapult_ext.data import Dataset, as_dataset
from catapult_ext.experiments.descent import descend, sweep_record
from catapult_ext.experiments.linearised import linearised_sweep
from catapult_ext.experiments.result import SweepResult
from catapult_ext.experiments.start import Start, start
from catapult_ext.experiments.storage import describe_loss
from catapult_ext.experiments.summary import summarise, verdict_of
from catapult_ext.experiments.sweep_config import WHERE, SweepConfig, check_problem
from catapult_ext.figures.style import require_matplotlib
from catapult_ext.probes import hidden_width
from catapult_ext.training import Recipe


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
        **dataclasses.asdict(config),
        "loss": describe_loss(loss),
        "model": str(model).splitlines(),
        "weights": weights_digest(model),
        "data": data.name,
        "data_digest": data.fingerprint(),
    }
    if group is not None:
        require(out is not None, WHERE, "group needs out, a run folder that all ranks see", out)
        work = _Sweep(config, model, data, resolved, None, progress)
        return _shared(group, identity, work, out, fresh, title)
    if out is None:
        return _Sweep(config, model, data, resolved, None, progress).result()
    require_matplotlib()
    with RunFolder(out, identity, environment=environment(), fresh=fresh) as folder:
        return _Sweep(config, model, data, resolved, folder, progress).reported(title)


def _shared(
    group: Any, identity: dict[str, Any], work: _Sweep, out: Any, fresh: bool, title: str
) -> SweepResult:
    """One sweep on all ranks of ``group``: rank 0 opens the folder first, and reports last."""
    require_matplotlib()
    with Ranks.of(group, WHERE) as ranks:
        first = ranks.rank == 0
        if not first:
            ranks.wait("open")
        with RunFolder(
            out,
            identity,
            environment=environment(),
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

    @property
    def recipe(self) -> Recipe:
        """Full-batch descent of the model as it is."""
        s = self.config
        top = s.top or self.data.outputs
        return Recipe(s.steps, probe_factor=s.probe_factor, batch_stats=None, tol=s.tol, top=top)

    def reported(self, title: str) -> SweepResult:
        """:meth:`result`, written to the folder."""
        assert self.folder is not None
        result = self.result()
        self.progress.stage("writing the report")
        result.write_reports(self.folder, title)
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
            made = descend(problem, eta, self.recipe, on_step=self._step)
            record = {"c": c, **sweep_record(made, eta)}
            parts[names[i]] = record = self._save(names[i], record, start)
            self.progress.done(i, c, verdict_of(record, initial["lambda0"]).phase)
        if self.config.linearised and parts["linearised"] is None and self._mine("linearised"):
            self.progress.stage("the net linearised at the start")
            start = time.perf_counter()
            etas = [eta for _, eta in rates]
            linear = {"rates": linearised_sweep(problem, etas, self.config.steps)}
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
                    self.folder.note_time(name, float(seconds))

    def _problem(self) -> tuple[Start, dict[str, Any]]:
        config, data = self.config, self.data
        problem = start(self.model, data, self.loss, self.recipe, cut=config.cut, where=WHERE)
        model, top = problem.model, problem.top
        initial = {
            "lambda0": top.lambda0,
            "lambda0_error": top.error,
            "top_ratios": list(top.ratios),
            "loss0": problem.loss0,
            "cut": problem.cut,
            "width": hidden_width(model),
            "parameters": sum(p.numel() for p in model.parameters()),
            "samples": len(data.x_train),
            "outputs": data.outputs,
        }
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
            self.folder.note_time(name, seconds)
        else:  # one file, which only rank 0 writes
            self.ranks.tell(f"seconds/{name}", str(seconds))
        stored = self.folder.load_part(name)
        assert stored is not None
        return stored
