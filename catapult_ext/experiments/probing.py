"""Probe a model given by name on data given by file: curvature, learning rates, spectrum."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext import data as datasets
from catapult_ext.data.files import read_pt, read_training_npz, training_named
from catapult_ext.data.named import NAMES
from catapult_ext.eig import SpectralDensity, eigsh, spectral_density
from catapult_ext.linops import GGN, NTK, Hessian
from catapult_ext.probes import LearningRateWindow, learning_rate_window

_WHERE = "probe"


def load_model(spec: str) -> nn.Module:
    """Call the factory ``package.module:factory`` (the working directory is importable).

    Raises:
        ValueError: a spec without colon, a module or factory that is not there.
        TypeError: the factory returns no ``torch.nn.Module``.
    """
    model = _made("MODEL", spec)
    if not isinstance(model, nn.Module):
        v.fail(_WHERE, "the factory must return a torch.nn.Module", type(model).__name__, TypeError)
    return model


def load_data(source: str, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """``(x, y)`` of an ``.npz`` or ``.pt`` file, a data set by name, or a loader factory.

    Files hold ``x`` and ``y``, or ``x_train`` and ``y_train`` (``.pt``: a dictionary, or a pair,
    loaded with ``weights_only``).  A factory ``package.module:name`` returns a pair or an iterable
    of batches ``(x, y)``, which are joined.

    Args:
        source: file, factory, or a name that :func:`~catapult_ext.data.named` takes.
        samples: take at most this number, the first ones; None takes all.

    Raises:
        TypeError: data that are no tensors.
        ValueError: another kind of source, no samples, or x and y of different lengths.
        DataFileError: a file that is damaged or lacks the data.
    """
    v.require(samples is None or samples >= 1, _WHERE, "samples must be >= 1", samples)
    pair: tuple[Any, Any]
    if source in NAMES:
        count = None if samples is None else max(512, samples)  # samples do not change the draw
        pair = datasets.named(source, train=count).train
    elif ":" in source and not Path(source).exists():
        pair = _from_factory(source, samples)
    else:
        pair = _from_file(Path(source))
    for name, value in zip("xy", pair, strict=True):
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            v.fail(_WHERE, f"{name} of {source} must be a torch.Tensor", kind, TypeError)
        v.dense(_WHERE, f"{name} of {source}", value)
        v.require(value.dim() > 0, _WHERE, f"{name} of {source} must hold a row a sample", value)
    x, y = pair
    ok = len(x) == len(y) > 0
    wanted = f"x and y of {source} must hold the same number of samples, at least one"
    v.require(ok, _WHERE, wanted, (len(x), len(y)))
    return x[:samples], y[:samples]


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


def _from_factory(source: str, samples: int | None) -> tuple[Any, Any]:
    made = _made("DATA", source)
    if isinstance(made, (tuple, list)) and len(made) == 2 and isinstance(made[0], Tensor):
        return made[0], made[1]
    wanted = f"{source} must return (x, y) or batches (x, y) of tensors"
    if not isinstance(made, Iterable):
        v.fail(_WHERE, wanted, type(made).__name__, TypeError)
    batches: list[Any] = []
    for batch in made:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not pair or not all(isinstance(part, Tensor) and part.dim() for part in batch):
            v.fail(_WHERE, wanted, f"a batch of type {type(batch).__name__}", TypeError)
        batches.append(batch)
        if samples is not None and sum(len(x) for x, _ in batches) >= samples:
            break
    v.require(bool(batches), _WHERE, wanted, "none")
    xs, ys = zip(*batches, strict=True)
    try:
        return torch.cat(xs), torch.cat(ys)
    except RuntimeError as error:
        v.fail(_WHERE, f"the batches of {source} must fit together", error)
        raise


def _made(kind: str, spec: str) -> Any:
    """What the factory ``package.module:factory`` returns."""
    place, _, name = spec.partition(":")
    named = all(part.isidentifier() for part in (*place.split("."), name))
    v.require(named, _WHERE, f"{kind} must be package.module:factory", spec)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if not f"{place}.".startswith(f"{error.name}."):
            raise  # a module that this one needs
        v.fail(_WHERE, f"{kind} must name a module that can be imported", place)
    factory = getattr(module, name, None)
    if callable(factory):
        return factory()
    held = type(factory).__name__ if hasattr(module, name) else "no such name"
    v.fail(_WHERE, f"{kind}: module {place} must have a function {name}", held)


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What ``catapult-ext probe`` shows.

    Attributes:
        rows: one dictionary a quantity and rank: ``quantity``, ``rank``, ``value``, ``error``,
            ``index_check``, ``products``.
        window: learning rates.
        density: of the Hessian, or None.
    """

    rows: list[dict[str, Any]]
    window: LearningRateWindow
    density: SpectralDensity | None


def probe(
    model: nn.Module,
    loss: object,
    data: tuple[Tensor, Tensor],
    *,
    k: int = 3,
    tol: float = 1e-3,
    density: bool = True,
    measure: int = 0,
    seed: int = 0,
) -> ProbeResult:
    """Top-k eigenvalues of NTK, GGN and Hessian, the learning-rate window and the density.

    The NTK and the GGN share one frozen model.  Raises what these raise.
    """
    ggn = GGN(model, loss, data)
    operators = {
        "NTK": NTK.of(ggn.linearization),
        "GGN": ggn,
        "Hessian": Hessian(model, loss, data),
    }
    rows = []
    for name, operator in operators.items():
        found = eigsh(operator, min(k, operator.shape[0]), tol=tol, seed=seed)
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
    window = learning_rate_window(model, loss, data, tol=tol, measure=measure, seed=seed)
    spectrum = spectral_density(operators["Hessian"], 40, 4, seed=seed) if density else None
    return ProbeResult(rows, window, spectrum)
