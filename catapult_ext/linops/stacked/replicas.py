"""R models of one architecture: checked against the first, and their tensors stacked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from catapult_ext import _validate as v
from catapult_ext._module_copy import unwrapped
from catapult_ext.linops.model.inputs import wide

# What torch keeps in every module besides its own settings.
_TENSORS = ("_parameters", "_buffers", "_modules")
_PLAIN = {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size}
_MISSING = object()


class Replicas(Sequence[nn.Module]):
    """Models of one architecture, in order; equal in all but the values of their tensors.

    Args:
        models: a list or tuple of modules, or ``(params, buffers, module)``: what
            ``torch.func.stack_module_state`` returns and a module of that structure, whose own
            values (which may be on the meta device) are not read.
        where: the public function named in errors.

    Raises:
        TypeError: something else, or models of different dtypes.
        ValueError: no model; models that differ in structure, device, mode or trainable
            parameters, named by index and parameter; one Parameter in two models.
    """

    def __init__(self, models: Sequence[Any], where: str) -> None:
        self._where = where
        if not isinstance(models, (list, tuple)):
            v.fail(where, "models must be a list of modules", type(models).__name__, TypeError)
        v.require(len(models) > 0, where, "models must hold at least one model", "none")
        self._made: dict[int, nn.Module] = {}  # of stacked state, when they are asked for
        self._state: dict[str, Tensor] | None = None
        if len(models) == 3 and isinstance(models[0], Mapping):
            self._state, module = _checked_state(models, where)
            self._models = [unwrapped(module)]
            self._count = len(next(iter(self._state.values())))
            return
        self._models, self._count = list(models), len(models)
        for r, model in enumerate(self._models):
            if not isinstance(model, nn.Module):
                needs = f"models[{r}] must be a torch.nn.Module"
                v.fail(where, needs, type(model).__name__, TypeError)
        self._models = [unwrapped(model) for model in self._models]
        self._parts = [dict(model.named_modules()) for model in self._models]
        self._held = [_tensors(parts) for parts in self._parts]
        self._check_own_parameters()
        for r in range(1, len(self._models)):
            _check_modules(self._parts[0], self._parts[r], r, where)
            _check_tensors(self._held[0], self._held[r], r, where)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, r: Any) -> Any:
        if self._state is None:
            return self._models[r]
        if r not in range(self._count):
            raise IndexError(r)
        if r not in self._made:
            own = {name: t.detach()[r] for name, t in self._state.items()}
            self._made[r] = _with_state(self._models[0], own)
        return self._made[r]

    def _check_own_parameters(self) -> None:
        """Raise ValueError where two replicas hold one Parameter."""
        owner: dict[int, tuple[int, str]] = {}
        for r, held in enumerate(self._held):
            for name, t in held.items():
                if not isinstance(t, nn.Parameter):
                    continue
                first, shared = owner.setdefault(id(t), (r, name))
                v.require(
                    first == r,
                    self._where,
                    "every model must have parameters of its own (copy.deepcopy makes them)",
                    f"one Parameter as models[{first}] {shared} and models[{r}] {name}",
                )

    def difference(self) -> str:
        """The first setting that is not the same in every model, or empty where none is."""
        if self._state is not None:
            return ""
        ties = _ties(self._held[0])
        for path, one in self._parts[0].items():
            own = {key: value for key, value in vars(one).items() if key not in _TENSORS}
            for r in range(1, len(self._models)):
                other = vars(self._parts[r][path])
                for key, value in own.items():
                    theirs = other.get(key, _MISSING)
                    if value is not theirs and not _same(value, theirs):
                        return f"models[{r}] has another {path + '.' if path else ''}{key}"
                if len(other) != len(vars(one)):
                    return f"models[{r}] has other settings of {path or 'the model'}"
        for r in range(1, len(self._models)):
            if _ties(self._held[r]) != ties:
                return f"models[{r}] shares other parameters among its layers"
        return ""

    def held(self, r: int) -> list[Tensor]:
        """Parameters and buffers of models[r]."""
        if self._state is not None:
            return list(self._state.values())
        return list(self._held[r].values())

    def stacked(self, name: str) -> Tensor:
        """The tensor ``name`` of every model, (R, ...), copied; half precision becomes float32."""
        if self._state is not None:
            return wide(self._state[name].detach().clone())
        return wide(torch.stack([held[name].detach() for held in self._held]))


def _tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that several modules share under every name."""
    found = {}
    for path, part in parts.items():
        for held in (part._parameters, part._buffers):
            for name, t in held.items():
                if t is not None:
                    found[f"{path}.{name}" if path else name] = t
    return found


def _ties(held: Mapping[str, Tensor]) -> list[str]:
    """For each tensor the first name of the same one."""
    first: dict[int, str] = {}
    return [first.setdefault(id(t), name) for name, t in held.items()]


def _checked_state(models: Sequence[Any], where: str) -> tuple[dict[str, Tensor], nn.Module]:
    """Stacked parameters and buffers, and the module that they belong to."""
    params, buffers, module = models
    fits = isinstance(buffers, Mapping) and isinstance(module, nn.Module)
    if not fits:
        needs = "models must be modules, or (params, buffers, module)"
        v.fail(where, needs, f"({', '.join(type(m).__name__ for m in models)})", TypeError)
    state = {**params, **buffers}
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    odd = sorted(set(state) ^ set(own))
    v.require(not odd, where, "stacked state must have the names of the module", odd[:3])
    for name, value in state.items():
        fits = value.dim() > 0 and value.shape[1:] == own[name].shape
        needs = f"stacked state must be (R, ...): {name} (R, {tuple(own[name].shape)})"
        v.require(fits, where, needs, tuple(value.shape))
    counts = {value.shape[0] for value in state.values()}
    v.require(len(counts) == 1, where, "stacked state must have one R", sorted(counts))
    v.require(counts != {0}, where, "models must hold at least one model", "R = 0")
    return state, module


def _with_state(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``module`` that holds the tensors of ``state``."""
    memo: dict[int, Any] = {}
    trainable = {name: p.requires_grad for name, p in module.named_parameters()}
    for name, old in (*module.named_parameters(), *module.named_buffers()):
        new = state[name]
        known = name in trainable
        memo[id(old)] = nn.Parameter(new, trainable[name]) if known else new
    return copy.deepcopy(module, memo)


def _check_modules(
    parts: Mapping[str, nn.Module], others: Mapping[str, nn.Module], r: int, where: str
) -> None:
    """Raise ValueError unless models[r] has the modules and modes of models[0]."""
    for name in parts if list(parts) == list(others) else [*parts, *others]:
        part, other = parts.get(name), others.get(name)
        if part is None or other is None or _kind(part) != _kind(other):
            kinds = ["none" if m is None else type(m).__name__ for m in (part, other)]
            needs = f"models[{r}] module '{name}' must be {kinds[0]}"
            v.fail(where, f"models must have one structure: {needs}", kinds[1])
        if part.training != other.training:
            modes = ["train" if m.training else "eval" for m in (part, other)]
            needs = f"models[{r}] module '{name}' must be in {modes[0]} mode"
            v.fail(where, f"models must be in one mode: {needs}", modes[1])


def _kind(module: nn.Module) -> object:
    """The class of a module; of a parametrized one, which has a class of its own, what it is of."""
    kind = type(module)
    return (kind.__name__, kind.__bases__) if is_parametrized(module) else kind


def _check_tensors(
    own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], r: int, where: str
) -> None:
    """Raise unless models[r] has parameters and buffers as models[0]."""
    odd = next((name for name in [*own, *theirs] if name not in own or name not in theirs), None)
    if odd is not None:
        kind = "parameter" if isinstance({**own, **theirs}[odd], nn.Parameter) else "buffer"
        have = ("must have", "none") if odd in own else ("must not have", "one")
        needs = f"models must have one structure: models[{r}] {have[0]} the {kind} {odd}"
        v.fail(where, needs, have[1])
    for name, t in own.items():
        other = theirs[name]
        alike = t.shape == other.shape and t.dtype == other.dtype and t.device == other.device
        if not alike or t.requires_grad != other.requires_grad:
            _refuse(t, other, f"models[{r}] {name}", where)


def _refuse(t: Tensor, other: Tensor, at: str, where: str) -> NoReturn:
    """Raise what says how two tensors differ."""
    if t.shape != other.shape:
        v.fail(where, f"{at} must have shape {tuple(t.shape)}", tuple(other.shape))
    if t.dtype != other.dtype:
        v.fail(where, f"{at} must have dtype {t.dtype}", other.dtype, TypeError)
    if t.device != other.device:
        v.fail(where, f"{at} must be on {t.device}", other.device)
    wanted, found = ("trainable" if p.requires_grad else "frozen" for p in (t, other))
    v.fail(where, f"{at} must be {wanted}, as in models[0]", found)


def _same(one: Any, other: Any) -> bool:
    """Whether two settings of modules are surely the same."""
    kind = type(one)
    if kind is not type(other):
        return False
    if kind in _PLAIN:
        return bool(one == other) or (one != one and other != other)
    if isinstance(one, dict):
        if not one and not other:
            return True
        keys = list(one) == list(other)
        return keys and all(_same(one[k], other[k]) or one[k] is other[k] for k in one)
    if kind in (tuple, list):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(a is b or _same(a, b) for a, b in pairs)
    if kind in (set, frozenset):
        return bool(one == other)
    if isinstance(one, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and one.device == other.device and torch.equal(one, other)
    return False


def per_replica(data: Any, count: int, where: str, name: str) -> list[Any]:
    """The batch of each replica: of a list one each, of anything else the same for all.

    Raises:
        ValueError: a list of another length, or batches whose tensors differ in shape.
        TypeError: batches whose tensors differ in dtype or form.
    """
    if not isinstance(data, list):
        return [data] * count
    needs = f"a list {name} must hold a batch for each of the {count} models"
    v.require(len(data) == count, where, needs, len(data))
    first = _shapes(data[0])
    for r, batch in enumerate(data):
        needs = f"{name} must be of one form and shape for all models: {name}[{r}] must be {first}"
        v.require(_shapes(batch) == first, where, needs, _shapes(batch))
    return data


def _shapes(value: Any) -> Any:
    """Shapes and dtypes of the tensors of nested inputs, and what lies around them."""
    if isinstance(value, Tensor):
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{place}"
    if isinstance(value, Mapping):
        return {k: _shapes(a) for k, a in value.items()}
    if isinstance(value, (tuple, list)):
        return [_shapes(a) for a in value]
    return type(value).__name__
