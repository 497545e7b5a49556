"""Train one network at many learning rates and follow its curvature: the learning-rate sweep."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from catapult_ext import _progress, losses
from catapult_ext import _validate as v
from catapult_ext._model_call import Forward
from catapult_ext._processes import Ranks
from catapult_ext._store import RunFolder, environment, weights_digest
from catapult_ext.data import Dataset, as_dataset
from catapult_ext.experiments.indexed import indexed
from catapult_ext.experiments.parts import Parts
from catapult_ext.experiments.result import SweepResult
from catapult_ext.experiments.seed_sweeps import SeedSweeps
from catapult_ext.experiments.sweep_config import SweepConfig, check_problem, describe_loss
from catapult_ext.experiments.sweeping import Progress, Sweeping, watched
from catapult_ext.figures.style import require_matplotlib
from catapult_ext.figures.sweep import CAPTIONS, seed_figures, sweep_figures
from catapult_ext.linops.stacked.replicas import Replicas
from catapult_ext.probes.problem import Problem
from catapult_ext.runs import report

_WHERE = "sweep"


@overload
def sweep(
    model: nn.Module,
    data: Any,
    *,
    c: Sequence[float] | None = ...,
    eta: Sequence[float] | None = ...,
    steps: int = ...,
    loss: Any = ...,
    out: Path | str | None = ...,
    fresh: bool = ...,
    progress: Progress | None = ...,
    group: Any = ...,
    forward: Forward | None = ...,
    **settings: Any,
) -> SweepResult: ...


@overload
def sweep(
    model: Sequence[nn.Module],
    data: Any,
    *,
    c: Sequence[float] | None = ...,
    eta: Sequence[float] | None = ...,
    steps: int = ...,
    loss: Any = ...,
    out: Path | str | None = ...,
    fresh: bool = ...,
    progress: Progress | None = ...,
    group: Any = ...,
    forward: Forward | None = ...,
    **settings: Any,
) -> SeedSweeps: ...


def sweep(
    model: Any,
    data: Any,
    *,
    c: Sequence[float] | None = None,
    eta: Sequence[float] | None = None,
    steps: int = 200,
    loss: Any = "half_mse",
    out: Path | str | None = None,
    fresh: bool = False,
    progress: Progress | _progress.Progress = None,
    group: Any = None,
    forward: Forward | None = None,
    **settings: Any,
) -> SweepResult | SeedSweeps:
    """Train ``model`` by full-batch gradient descent at each learning rate, from the same start.

    Args:
        model: any module without active dropout; it is copied, not changed.  Or a list of them,
            equal in all but the values of their tensors, such as one network with several seeds.
            Each is swept; all share one run folder.
        data: a ``data.Dataset``, ``(x, y)`` or ``(x, y, x_test, y_test)`` with y (N, O), one-hot
            for classes; or another form that :func:`~catapult_ext._batches.batch_of` accepts, which
            has no test set.
        c: learning rates in units of 1 / lambda_0; under squared loss a rate below 2 is lazy. Give
            either ``c`` or ``eta``.
        eta: learning rates.
        steps: number of gradient steps at every rate.
        loss: see :func:`catapult_ext.losses.resolve`; lambda is the
            top eigenvalue of its Gauss-Newton matrix.
        out: run folder. Every rate is stored when it is finished, and an interrupted sweep resumes
            from the last stored rate. Summary, pictures and a report are written at the end. Needs
            the extra ``experiments``. None keeps the results in memory only.
        fresh: start again in a folder with an earlier run.
        progress: True for a bar, a function of (rates done, rates), or a
            :class:`~catapult_ext.experiments.Progress` with a callback for each kind of event.
        group: None, ``"world"`` or a torch.distributed group, whose ranks divide the rates. Every
            rank makes the same call with the same ``out``, a folder that all ranks can access.
        forward: ``forward(model, x)`` returns the outputs; None calls the model.
        **settings: the other fields of :class:`SweepConfig`.

    Returns:
        :class:`SweepResult`, with ascending rates; for a list of models
        :class:`~catapult_ext.experiments.SeedSweeps`.

    Raises:
        TypeError: wrong types or dtypes, both or neither of c and eta.
        ValueError: rates <= 0, sizes that do not match, a loss without a Gauss-Newton matrix,
            models that differ (named by index and parameter).
        RuntimeError: a rank that failed or was lost (named); a run folder that cannot be used
            (``runs.RunFolderError``), or matplotlib missing with ``out``.

    Cost:
        One forward and backward pass per step and rate, and a warm-started eigenvalue solve at
        each of about log2(steps) probe steps.  Rates and seeds of a small chain of dense layers are
        trained together in chunks (``experiments.stacked_chain``), and their curvature is followed
        from probe to probe (``experiments.curvature.Followed``).

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
        >>> result = cx.sweep(net, (torch.randn(8, 3), torch.randn(8, 1)), c=[0.5, 1.0], steps=4)
        >>> len(result.records)
        2
    """
    known = [field.name for field in fields(SweepConfig) if field.init]
    for name in settings:
        shown = f"{name!r}{v.nearest(name, known)}"
        if name not in known:
            v.fail(_WHERE, f"settings are {', '.join(known)}", shown, TypeError)
    config = SweepConfig(
        c=None if c is None else _rates("c", c),
        eta=None if eta is None else _rates("eta", eta),
        steps=steps,
        **settings,
    )
    several = isinstance(model, (list, tuple))
    models = list(Replicas(model, _WHERE)) if several else [model]
    for one in models:
        v.module(_WHERE, one)
    chosen, dropout = config.params, config.dropout
    found: Any
    if _plain(data) and forward is None and dropout is None:
        found = as_dataset(data, _WHERE)
        problem = Problem(_WHERE, losses.OWN_LOSS, None, params=chosen)
        models = [problem.trained_copy(one) for one in models]
    else:
        data = data.train if isinstance(data, Dataset) else data
        problem = Problem.of(loss, data, _WHERE, forward=forward, params=chosen, dropout=dropout)
        needs = "loss must have a Gauss-Newton matrix (give loss=)"
        v.require(problem.loss.convex, _WHERE, needs, problem.loss.name)
        made = [indexed(problem.trained_copy(one), problem) for one in models]
        models, found = [one for one, _ in made], made[0][1]
    return _run(
        config,
        models,
        several,
        found,
        loss,
        out=out,
        fresh=fresh,
        progress=progress,
        group=group,
    )


def _plain(data: Any) -> bool:
    """Whether these are the tensors of a data set, targets (N,) or (N, O) as its outputs."""
    if isinstance(data, Dataset):
        return True
    pair = type(data) in (tuple, list) and len(data) in (2, 4)
    floats = pair and all(isinstance(t, Tensor) and t.is_floating_point() for t in data)
    return pair and (len(data) == 4 or (floats and data[1].dim() <= 2))


def _rates(name: str, values: object) -> tuple[float, ...]:
    """A sequence, array or tensor of rates as floats."""
    held = v.array(_WHERE, name, values, torch.float64)
    v.require(held.dim() == 1, _WHERE, f"{name} must be a list of rates", tuple(held.shape))
    return tuple(held.tolist())


def run(
    config: SweepConfig, model: nn.Module, data: Dataset, loss: Any = "half_mse", **options: Any
) -> SweepResult:
    """:func:`sweep` with its settings in a :class:`SweepConfig`.

    Args:
        config: the settings.
        model: one module.
        data: a data set.
        loss: as in :func:`sweep`.
        **options: ``out``, ``fresh``, ``progress`` and ``group`` of :func:`sweep`, and ``title`` of
            the report.
    """
    found = _run(config, [model], False, data, loss, **options)
    assert isinstance(found, SweepResult)
    return found


def run_seeds(
    config: SweepConfig,
    models: list[nn.Module],
    data: Dataset,
    loss: Any = "half_mse",
    **options: Any,
) -> SeedSweeps:
    """:func:`run` of several models of one architecture.

    Args:
        config: the settings.
        models: equal in all but the values of their tensors.
        data: a data set.
        loss: as in :func:`sweep`.
        **options: as of :func:`run`, and ``first_seed``, the number of the first model in tables,
            pictures and file names.
    """
    found = _run(config, models, True, data, loss, **options)
    assert isinstance(found, SeedSweeps)
    return found


def _run(
    config: SweepConfig,
    models: list[nn.Module],
    several: bool,
    data: Dataset,
    loss: Any,
    *,
    out: Path | str | None = None,
    fresh: bool = False,
    title: str = "Learning-rate sweep",
    progress: Progress | _progress.Progress = None,
    group: Any = None,
    first_seed: int = 0,
) -> SweepResult | SeedSweeps:
    for at, model in enumerate(models):
        try:
            resolved = check_problem(model, data, loss, config.linearised, config.dropout)
        except (TypeError, ValueError) as error:
            if several:
                raise type(error)(f"{error} (models[{at}])") from error
            raise
    digests = [weights_digest(model) for model in models]
    identity = {
        "experiment": "sweep",
        "version": 1,
        **config.identity(),
        "loss": describe_loss(loss),
        "model": str(models[0]).splitlines(),
        "weights": digests if several else digests[0],
        "data": data.name,
        "data_digest": data.fingerprint(),
    }
    with watched(progress, _WHERE) as seen:
        numbered = first_seed if several else None
        work = functools.partial(Sweeping, config, models, numbered, data, resolved, seen)
        if group is not None:
            needs = "group needs out, a run folder that all ranks see"
            v.require(out is not None, _WHERE, needs, out)
            return _shared(group, identity, work, out, fresh, title)
        if out is None:
            return work(Parts()).result()
        require_matplotlib()
        with RunFolder(out, identity, environment=environment(), fresh=fresh) as folder:
            return _reported(work(Parts(folder)), folder, title)


def _reported(work: Sweeping, folder: RunFolder, title: str) -> SweepResult | SeedSweeps:
    """The result, written to the folder."""
    result = work.result()
    work.progress.stage("writing the report")
    if isinstance(result, SweepResult):
        report.write(folder, title, result, sweep_figures(result.summary, result.records), CAPTIONS)
        return result
    pictures, captions = seed_figures(
        [(one.summary, one.records) for one in result], result.first_seed
    )
    report.write(folder, title, result, pictures, captions)
    return result


def _shared(
    group: Any,
    identity: dict[str, Any],
    work: Callable[[Parts], Sweeping],
    out: Any,
    fresh: bool,
    title: str,
) -> SweepResult | SeedSweeps:
    """One sweep on all ranks of ``group``: rank 0 opens the folder first, and reports last."""
    require_matplotlib()
    with Ranks.of(group, _WHERE) as ranks:
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
            made = work(Parts(folder, ranks))
            result = _reported(made, folder, title) if first else made.result()
            ranks.meet("end")
    return result
