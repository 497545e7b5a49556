"""Probe a model given by name on data given by file: curvature, learning rates, spectrum."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import data as datasets
from catapult_ext._validate import fail, require
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
    place, colon, name = spec.partition(":")
    require(bool(colon and place and name), _WHERE, "MODEL must be package.module:factory", spec)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(place), name)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise
        fail(_WHERE, "MODEL must name a module that can be imported", place)
    except AttributeError:
        fail(_WHERE, f"module {place} must have", name)
    model = factory()
    if not isinstance(model, nn.Module):
        fail(_WHERE, "the factory must return a torch.nn.Module", type(model).__name__, TypeError)
    return model


def load_data(source: str, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """``(x, y)`` of an ``.npz`` or ``.pt`` file, ``digits``, ``digits28``, or a loader factory.

    Files hold ``x`` and ``y`` (``.pt``: a dictionary or a pair, loaded with ``weights_only``).  A
    factory ``package.module:name`` returns a pair or an iterable of batches ``(x, y)``, which are
    joined.

    Raises:
        ValueError: another kind of source, a file that is missing or lacks ``x`` or ``y``.
    """
    if source in ("digits", "digits28"):
        loaded: Any = datasets.digits(28 if source == "digits28" else 8).train
    elif ":" in source and not Path(source).exists():
        loaded = _from_factory(source, samples)
    else:
        loaded = _from_file(Path(source))
    x, y = loaded
    ok = len(x) == len(y) and len(x) > 0
    require(ok, _WHERE, "x and y must hold the same number of samples", (len(x), len(y)))
    return (x, y) if samples is None else (x[:samples], y[:samples])


def _from_file(path: Path) -> tuple[Tensor, Tensor]:
    require(path.is_file(), _WHERE, "DATA must be a file, digits or module:factory", path)
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as archive:
            held: Any = {k: torch.from_numpy(archive[k]) for k in archive.files}
    elif path.suffix in (".pt", ".pth"):
        held = torch.load(path, weights_only=True)
    else:
        fail(_WHERE, "DATA must end in .npz or .pt", path.name)
    if isinstance(held, (tuple, list)) and len(held) == 2:
        return held[0], held[1]
    named = isinstance(held, dict) and "x" in held and "y" in held
    require(named, _WHERE, f"{path.name} must hold x and y", type(held).__name__)
    return held["x"], held["y"]


def _from_factory(source: str, samples: int | None) -> tuple[Tensor, Tensor]:
    place, _, name = source.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    made = getattr(importlib.import_module(place), name)()
    if isinstance(made, (tuple, list)) and len(made) == 2 and isinstance(made[0], Tensor):
        return made[0], made[1]
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for x, y in made:
        xs.append(x)
        ys.append(y)
        if samples is not None and sum(map(len, xs)) >= samples:
            break
    require(bool(xs), _WHERE, "the loader must yield batches (x, y)", "none")
    return torch.cat(xs), torch.cat(ys)


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
    operators = {"NTK": NTK.of(ggn.frozen), "GGN": ggn, "Hessian": Hessian(model, loss, data)}
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
