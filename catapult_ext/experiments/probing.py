"""Probe a model given by name on data given by file: curvature, learning rates, spectrum."""

from __future__ import annotations

import inspect
import random
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext import data as datasets
from catapult_ext._batches import (
    batch_of,
    count_samples,
    first_labels,
    first_samples,
    is_stream,
    joined,
    map_tensors,
)
from catapult_ext._by_path import fault, named_function, named_object
from catapult_ext._model_call import fields_of
from catapult_ext._progress import Progress, check_progress
from catapult_ext.data.files import read_pt, read_training_npz, training_named
from catapult_ext.data.named import NAMES
from catapult_ext.eig import SpectralDensity, eigsh, spectral_density
from catapult_ext.linops import GGN, NTK, Hessian
from catapult_ext.models import batch_stats_held, build
from catapult_ext.models.registry import is_name
from catapult_ext.probes import LearningRateWindow, learning_rate_window
from catapult_ext.probes.problem import Problem

_WHERE = "probe"


def load_model(spec: str, data: Any = None, *, seed: int | None = None) -> nn.Module:
    """A network by a name of ``models.build``, or what ``package.module:name`` is or returns.

    Args:
        spec: name; or module (the working directory is importable) or ``FILE.py``, and in it a
            ``torch.nn.Module`` or a function that returns one without arguments.
        data: ``(x, y)``, whose shapes a network by name takes: x (N, ...), y (N, O) or labels (N,).
        seed: seed of the generators of torch, NumPy and Python, set before the model is made; None
            leaves them.

    Raises:
        ValueError: an unknown name, a module or factory that is not there or fails.
        TypeError: neither a ``torch.nn.Module`` nor a function that returns one.
    """
    if is_name(spec):
        wanted = f"MODEL {spec} must come with tensors (x, y)"
        v.require(_tensors(data), _WHERE, wanted, type(data).__name__)
        x, y = data
        wanted = "MODEL gpt and data of characters, such as --data sums, go together"
        ok = x.is_floating_point() == (spec != "gpt")
        v.require(ok, _WHERE, wanted, f"{spec} on {x.dtype} of shape {tuple(x.shape)}")
        labels = y.dim() == 1 and not y.is_floating_point()
        outputs = int(y.max()) + 1 if labels else y[0].numel()
        return build(spec, x.shape[1:], outputs, seed=seed or 0)
    _seed_all(seed)
    found = named_object(_WHERE, "MODEL", spec)
    if isinstance(found, nn.Module):
        return found
    _seed_all(seed)  # again, whatever the module has drawn, or another import of it before
    model = _called(spec, _named("MODEL", spec))
    if not isinstance(model, nn.Module):
        v.fail(_WHERE, "the factory must return a torch.nn.Module", type(model).__name__, TypeError)
    return model


def _seed_all(seed: int | None) -> None:
    """Seed what a factory may draw from."""
    if seed is not None:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)


def load_function(option: str, spec: str | None) -> Any:
    """The function ``package.module:name``, uncalled; None where none is given."""
    return None if spec is None else _named(option, spec)


def load_data(
    source: str,
    samples: int | None = None,
    *,
    data_dir: Path | str | None = None,
    standardise: str | None = None,
    flatten: bool | None = None,
) -> Any:
    """``(x, y)`` of an ``.npz`` or ``.pt`` file, a data set by name, or what a factory returns.

    Files hold ``x`` and ``y``, or ``x_train`` and ``y_train`` (``.pt``: a dictionary, or a pair,
    loaded with ``weights_only``).  A factory ``package.module:name`` returns data in any form of
    :func:`~catapult_ext._batches.batch_of`; the batches of an iterable are joined.

    Args:
        source: file, factory, or a name that :func:`~catapult_ext.data.named` takes.
        samples: take at most this number, the first ones; None takes all.
        data_dir: folder of the files of a data set by name.
        standardise: how inputs are shifted and scaled by themselves, as in
            :func:`~catapult_ext.data.standardise`; None leaves those of files and factories alone.
        flatten: of a data set by name, vectors also of images; None for its own default.

    Raises:
        TypeError: data that are no tensors.
        ValueError: another kind of source, no samples, or x and y of different lengths.
        DataFileError: a file that is damaged or lacks the data.
    """
    v.require(samples is None or samples >= 1, _WHERE, "samples must be >= 1", samples)
    pair: Any
    if source in NAMES:
        count = None if samples is None else max(512, samples)  # samples do not change the draw
        how: dict[str, Any] = {"data_dir": data_dir, "standardisation": standardise}
        pair = datasets.named(source, train=count, flatten=flatten, **how, where=_WHERE).train
    elif ":" in source and not Path(source).exists():
        made = _from_factory(source, samples)
        if isinstance(made, datasets.Dataset):
            made = made.train
        if not _tensors(made):
            batch = batch_of(made, _WHERE)
            return first_samples(made, samples, count_samples(batch.x, batch.y))
        pair = made
    else:
        pair = _from_file(Path(source))
    for name, value in zip("xy", pair, strict=True):
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            v.fail(_WHERE, f"{name} of {source} must be a torch.Tensor", kind, TypeError)
        v.dense(_WHERE, f"{name} of {source}", value)
        v.require(value.dim() > 0, _WHERE, f"{name} of {source} must hold a row a sample", value)
    x, y = pair
    if standardise is not None and source not in NAMES:
        x = datasets.standardise(x if x.is_floating_point() else x.float(), x.float(), standardise)
    ok = len(y) > 0 and len(x) > 0 and len(y) % len(x) == 0
    wanted = f"x and y of {source} must hold the same number of samples, at least one"
    v.require(ok, _WHERE, wanted, (len(x), len(y)))
    return x[:samples], first_labels(y, samples, len(x))


def as_targets(loss: Any, found: Any) -> Any:
    """``(x, y)`` with class labels (N,) of a file one-hot, where a squared loss is to take them."""
    if not (loss.squared and _tensors(found)):
        return found
    x, y = found
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        return found
    v.require(int(y.min()) >= 0, _WHERE, "class labels must be >= 0", int(y.min()))
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return x, nn.functional.one_hot(y.long()).to(dtype)


def _from_file(path: Path) -> tuple[Any, Any]:
    v.require(path.is_file(), _WHERE, "DATA must be a file, digits or module:factory", path)
    v.require(path.suffix in (".npz", ".pt", ".pth"), _WHERE, "DATA must end in .npz or .pt", path)
    if path.suffix == ".npz":
        arrays = read_training_npz(path)
        # torch knows no numbers of the other byte order.
        pair = (arrays[n].astype(arrays[n].dtype.newbyteorder("=")) for n in ("x_train", "y_train"))
        x, y = (v.array(_WHERE, f"numbers of {path}", value) for value in pair)
        return x, y
    held = read_pt(path)
    if isinstance(held, (tuple, list)) and len(held) == 2:
        return held[0], held[1]
    if not isinstance(held, dict):
        raise datasets.DataFileError(path, f"must hold x and y, got {type(held).__name__}")
    held = training_named(path, held)
    return held["x_train"], held["y_train"]


def _tensors(data: Any) -> bool:
    """Whether ``data`` is a pair ``(x, y)`` of tensors."""
    pair = type(data) in (tuple, list) and len(data) == 2
    return pair and all(isinstance(part, Tensor) for part in data)


def _from_factory(source: str, samples: int | None) -> Any:
    made = _made("DATA", source)
    wanted = f"{source} must return (x, y) or batches (x, y) of tensors, or batches with labels"
    pair = type(made) in (tuple, list) and len(made) == 2 and isinstance(made[0], Tensor)
    if pair or isinstance(made, datasets.Dataset):
        return made
    if not is_stream(made) and not isinstance(made, list):
        try:
            batch_of(made, _WHERE)
        except TypeError as error:
            v.fail(_WHERE, wanted, error, TypeError)
        return made
    batches: list[Any] = []
    count = 0
    for batch in made:
        if not (_tensors(batch) or fields_of(batch) is not None or isinstance(batch, tuple)):
            v.fail(_WHERE, wanted, f"a batch of type {type(batch).__name__}", TypeError)
        held = batch_of(batch, _WHERE)
        batches.append(tuple(batch) if type(batch) is list else batch)
        count += count_samples(held.x, held.y)
        if samples is not None and count >= samples:
            break
    v.require(bool(batches), _WHERE, wanted, "none")
    try:
        return joined(batches, _WHERE)
    except TypeError as error:
        raise ValueError(
            f"catapult_ext.{_WHERE}: the batches of {source} must fit together: {error}"
        ) from error


def _made(kind: str, spec: str) -> Any:
    """Result of the factory ``package.module:factory``."""
    return _called(spec, _named(kind, spec))


def _called(spec: str, factory: Any) -> Any:
    """Result of ``factory()``; an exception inside it becomes an error of one line."""
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        v.fail(_WHERE, f"{spec} must be called without arguments", error, TypeError)
    except ValueError:  # no signature to be had
        pass
    try:
        return factory()
    except Exception as error:
        if str(error).startswith("catapult_ext."):
            raise
        wanted = f"{spec} must return without an error"
        raise ValueError(f"catapult_ext.{_WHERE}: {wanted}, got {fault(error)}") from error


def _named(kind: str, spec: str) -> Any:
    """The function ``package.module:factory``."""
    return named_function(_WHERE, kind, spec)


def in_dtype_of(model: nn.Module, data: Any) -> Any:
    """The same data with floating tensors in the dtype of the model's parameters."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return map_tensors(data, lambda t: t.to(dtype) if t.is_floating_point() else t)


def held(model: nn.Module, batch_stats: str | None, problem: Problem) -> Any:
    """A context of the model and the policy of operators that stand for ``batch_stats``."""
    if batch_stats is None:
        return nullcontext((model, None))
    drawn = problem.dropout is not None
    return batch_stats_held(model, batch_stats, problem.outputs, drawn=drawn)


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Result of ``catapult-ext probe``.

    Attributes:
        rows: one dictionary a quantity and rank: ``quantity``, ``rank``, ``value``, ``error``,
            ``index_check``, ``products``.
        window: learning rates.
        density: spectral density of the Hessian, or None.
        vectors: eigenvectors by quantity, to start from at the next checkpoint.
    """

    rows: list[dict[str, Any]]
    window: LearningRateWindow
    density: SpectralDensity | None
    vectors: dict[str, Tensor]


def probe(
    model: nn.Module,
    loss: object,
    data: Any,
    *,
    k: int = 3,
    tol: float = 1e-3,
    density: bool = True,
    measure: int = 0,
    seed: int = 0,
    batch_stats: str | None = None,
    start: dict[str, Tensor] | None = None,
    progress: Progress = None,
    **options: Any,
) -> ProbeResult:
    """Top-k eigenvalues of NTK, GGN and Hessian, the learning-rate window and the density.

    The NTK and the GGN share one frozen model.

    Args:
        model: any module.
        loss: see :func:`catapult_ext.losses.resolve`.
        data: as for :class:`~catapult_ext.GGN`.
        k: eigenvalues of each operator.
        tol: relative error of the eigenvalues.
        density: whether to estimate the spectral density of the Hessian.
        measure: number of steps of each run that measures eta_max.
        seed: seed of the random vectors, and of a fixed dropout mask.
        batch_stats: treatment of batch normalisation, one of ``models.BATCH_STATS``.  None follows
            the model's mode; operators refuse a model in training mode.
        start: ``vectors`` of a probe of a similar model.
        progress: True for a bar of each solve, of the window's trials and of the density, or a
            function of (done, total), which each of them calls, starting at 0.
        **options: ``forward``, ``params``, ``dropout``, ``memory_budget``.

    Raises:
        TypeError, ValueError: the errors of the operators and of the window.
    """
    check_progress(_WHERE, progress)
    problem = Problem.of(loss, data, _WHERE, seed=seed, **options)
    with held(model, batch_stats, problem) as (still, policy):
        ggn = GGN(still, loss, problem.data, batch_stats=policy, **problem.options)
        hessian = Hessian(still, loss, problem.data, batch_stats=policy, **problem.options)
    operators = {"NTK": NTK.of(ggn.linearization), "GGN": ggn, "Hessian": hessian}
    rows, vectors = [], {}
    for name, operator in operators.items():
        v0 = None if start is None else start[name]
        found = eigsh(
            operator, min(k, operator.shape[0]), tol=tol, seed=seed, v0=v0, progress=progress
        )
        vectors[name] = found.eigenvectors
        for rank in range(len(found.eigenvalues)):
            rows.append(
                {
                    "quantity": name,
                    "rank": rank + 1,
                    "value": found.eigenvalues[rank].item(),
                    "error": found.errors[rank].item(),
                    "index_check": found.index_check,
                    "products": found.matvecs,
                }
            )
    window = learning_rate_window(
        model,
        loss,
        problem.data,
        tol=tol,
        measure=measure,
        seed=seed,
        batch_stats=cast(Any, batch_stats),  # checked there
        progress=progress,
        **options,
    )
    spectrum = None
    if density:
        spectrum = spectral_density(hessian, 40, 4, seed=seed, progress=progress)
    return ProbeResult(rows, window, spectrum, vectors)
