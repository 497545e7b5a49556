"""Cheap observables of a model: accuracy, weight norm, inactive units, width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.overrides import TorchFunctionMode

from catapult_ext import _validate as v
from catapult_ext._batches import count_samples, one_pass
from catapult_ext._module_copy import without_cached_weights

# Activations that fall to (about) zero on the negative side, so that a unit can be inactive.
ONE_SIDED = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU)
ONE_SIDED_OPERATIONS = ("relu", "relu6", "gelu", "silu", "softplus", "elu")
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class Activity:
    """Fractions over the activation layers of a model.

    Attributes:
        inactive: fraction of pre-activations <= 0, mean over the layers.
        worst_inactive: the same of the layer with the largest fraction.
        dead: fraction of units that are inactive on every sample, of the worst layer.
    """

    inactive: float
    worst_inactive: float
    dead: float


def _shares(values: Tensor) -> Tensor:
    """(2,) shares inactive and dead of pre-activations; units along dimension 1."""
    with torch.no_grad():
        off = values.detach() <= 0
        others = [d for d in range(off.dim()) if d != 1]
        times = off.sum(others, dtype=torch.int32)
        samples = off.numel() // max(times.numel(), 1)
        return torch.stack([times.double().mean() / samples, (times == samples).double().mean()])


def _summary(layers: list[Tensor]) -> Activity | None:
    if not layers:
        return None
    inactive, dead = torch.stack(layers).T
    return Activity(inactive.mean().item(), inactive.max().item(), dead.max().item())


class OperationWatch(TorchFunctionMode):
    """Sees the one-sided activations of a forward pass as operations, however they are called."""

    def __init__(self) -> None:
        super().__init__()
        self._layers: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = args[0] if args else (kwargs or {}).get("input")
        name = getattr(func, "__name__", "").removesuffix("_")
        if name in ONE_SIDED_OPERATIONS and isinstance(values, Tensor):
            self._layers.append(_shares(values))  # before the call, which may be in place
        return func(*args, **(kwargs or {}))

    def found(self) -> Activity | None:
        """Over all passes made inside; None without such an operation."""
        return _summary(self._layers)


class ActivityWatch:
    """Sees the one-sided activation modules of ``model`` in every forward pass made inside.

    Units are counted along dimension 1, samples along all others.
    """

    shared_by_copies = True  # it sees the passes of operators too, which run on copies

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._passes: list[tuple[int, list[Tensor]]] = []  # rows, shares inactive and dead by layer
        self._hooks: list[Any] = []

    def __enter__(self) -> ActivityWatch:
        modules = (m for m in self._model.modules() if isinstance(m, ONE_SIDED))
        self._hooks = [m.register_forward_hook(self._look) for m in modules]
        if self._hooks:
            begin = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
            self._hooks.append(begin)
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def watches(self) -> bool:
        """Whether the model has such modules at all."""
        return bool(self._hooks)

    def _begin(self, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._passes.append((count_samples((inputs, named)), []))

    def _look(self, _module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        # After an in-place activation this is its output, which is <= 0 for the same units.
        if self._passes:
            self._passes[-1][1].append(_shares(inputs[0]))

    def found(self, rows: int) -> Activity | None:
        """Shares in the last pass over ``rows`` samples; None without a pass or a module."""
        seen = [shares for n, shares in self._passes if n == rows and shares]
        return _summary(seen[-1]) if seen else None


def activity(
    model: nn.Module, x: Any, outputs: Callable[[nn.Module], Tensor] | None = None
) -> tuple[Tensor, Activity | None]:
    """Outputs of ``model`` on ``x`` and the activity of its one-sided activations.

    Activations called as functions are seen as well; None where there is none.

    Args:
        model: any module.
        x: inputs.
        outputs: makes the outputs of the model on them; None calls the model on the tensor ``x``.

    Cost:
        One forward pass.

    Examples:
        >>> from catapult_ext.probes import activity
        >>> outputs, found = activity(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(8, 3))
        >>> 0 <= found.inactive <= 1
        True
    """
    v.module("probes.activity", model)
    if outputs is None and not isinstance(x, Tensor):
        v.fail("probes.activity", "x must be a torch.Tensor", type(x).__name__, TypeError)
    with OperationWatch() as watch, torch.no_grad(), without_cached_weights():
        try:
            call = (lambda: model(x.clone())) if outputs is None else (lambda: outputs(model))
            found = one_pass(call)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            kind = TypeError if "dtype" in str(error) else ValueError
            raise kind(
                "catapult_ext.probes.activity: the model must accept x, got "
                f"{_shown(x)}, on which its forward pass fails: {error}"
            ) from error
    return found, watch.found()


def _shown(x: Any) -> str:
    return f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__


def weight_norm(model: nn.Module) -> float:
    """Euclidean norm of all floating-point parameters, accumulated in float64.

    Examples:
        >>> from catapult_ext.probes import weight_norm
        >>> layer = nn.Linear(3, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 2.0)
        >>> round(weight_norm(layer), 6)  # sqrt(3 * 4)
        3.464102
    """
    floating = [p.detach() for p in model.parameters() if p.is_floating_point()]
    norms = [vector_norm(p, dtype=torch.float64) for p in floating]
    return float(vector_norm(torch.stack(norms))) if norms else 0.0


def accuracy(outputs: Tensor, targets: Tensor) -> float | None:
    """Share of samples whose largest output is the target class; None without samples.

    Args:
        outputs: (N, O), O >= 2.
        targets: (N, O) one-hot, or (N,) labels.

    Examples:
        >>> from catapult_ext.probes import accuracy
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        0.5
    """
    if not len(outputs):
        return None
    labels = targets if targets.dim() == 1 else targets.argmax(dim=1)
    return (outputs.argmax(dim=1) == labels).double().mean().item()


def hidden_width(model: nn.Module) -> int:
    """Largest number of units (channels) of a weight that is not the last one; at least 1.

    Examples:
        >>> from catapult_ext.probes import hidden_width
        >>> hidden_width(nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 2)))
        64
    """
    rows = [p.shape[0] for p in model.parameters() if p.dim() >= 2]
    return max(rows[:-1], default=1)


def active_dropout(model: nn.Module) -> str | None:
    """Name of a dropout module that is switched on, or None."""
    for name, module in model.named_modules():
        if isinstance(module, DROPOUT) and module.training and module.p > 0:
            return name
    return None
