"""How a model is called on inputs of any form, and which tensor of its result is the outputs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from catapult_ext import _validate as v

LABELS = ("labels", "label", "targets", "target", "y")
FORWARD = "pass forward=lambda model, x: ... that returns them"
Forward = Callable[[nn.Module, Any], Any]


def fields_of(value: Any) -> dict[str, Any] | None:
    """The named fields of a mapping, named tuple, dataclass or graph batch; None of others."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return value._asdict() if hasattr(value, "_asdict") else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    keys = getattr(value, "keys", None)  # a torch_geometric Data
    if callable(keys) and hasattr(value, "__getitem__") and not isinstance(value, nn.Module):
        return {str(key): value[key] for key in keys()}
    return None


def call_model(model: nn.Module, x: Any, forward: Forward | None = None) -> Any:
    """Outputs of ``model`` for inputs ``x``, passed in the form that its ``forward`` takes.

    A mapping gives keyword arguments and a tuple positional ones.  A named tuple, a dataclass or a
    graph batch gives those of its fields that the arguments name.  Each is passed whole to a model
    whose arguments do not fit it otherwise.  Labels that no argument names are left out.

    Args:
        model: any module.
        x: inputs.
        forward: the user's ``forward(model, x)``, which takes ``x`` as it is.
    """
    if forward is not None:
        return forward(model, x)
    if isinstance(x, Tensor):
        return model(x)
    accepts = _Arguments(model)
    if isinstance(x, Mapping):
        return _by_name(model, accepts, dict(x), x)
    if isinstance(x, tuple):
        named = fields_of(x)
        if named is not None:
            known = accepts.known(named)
            if known and accepts.names(known):
                return model(**known)
        return model(x) if not accepts(*x) and accepts(x) else model(*x)
    named = fields_of(x)
    if named is not None:
        given = {k: a for k, a in named.items() if k in accepts.keywords and a is not None}
        if given and accepts.names(given):
            return model(**given)
    return model(x)


def _by_name(model: nn.Module, accepts: _Arguments, named: dict[str, Any], whole: Any) -> Any:
    if accepts.names(named):
        return model(**named)
    known = accepts.known(named)
    if known and accepts.names(known):
        return model(**known)
    return model(whole) if accepts(whole) else model(**named)


class _Arguments:
    """Argument names of a module's ``forward``; anything, where the signature does not say."""

    def __init__(self, model: nn.Module) -> None:
        self._signature: inspect.Signature | None
        try:
            self._signature = inspect.signature(model.forward)
        except (TypeError, ValueError):
            self._signature = None
        self.keywords = () if self._signature is None else tuple(self._signature.parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> bool:
        if self._signature is None:
            return True
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def known(self, fields: Mapping[Any, Any]) -> dict[Any, Any]:
        """``fields`` without the labels that no argument names."""
        return {k: a for k, a in fields.items() if k in self.keywords or k not in LABELS}

    def names(self, fields: Mapping[Any, Any]) -> bool:
        """Whether all of ``fields`` can be keyword arguments."""
        return all(isinstance(k, str) for k in fields) and self(**fields)


def output_tensor(out: Any, where: str) -> Tensor:
    """The outputs in what a model returned: ``.logits``, or the only float tensor.

    Scalars next to other tensors are taken for losses.

    Raises:
        TypeError: none, or several.
    """
    if isinstance(out, Tensor):
        return out
    named = fields_of(out) or {}
    if isinstance(named.get("logits"), Tensor):
        return named["logits"]
    found = [t for t in _tensors(out) if t.is_floating_point()]
    found = [t for t in found if t.dim() > 0] or found
    if len(found) != 1:
        v.fail(
            where,
            "the model must return a tensor of outputs (N, ...), or an object with .logits or one "
            f"float tensor; {FORWARD}",
            f"{type(out).__name__} with {len(found)} float tensors{_named(named)}",
            TypeError,
        )
    return found[0]


def own_loss(out: Any, where: str) -> Tensor:
    """The loss in what a model returned, (1,): ``.loss``, or the only scalar.

    Raises:
        TypeError: there is none.
    """
    loss = loss_in(out)
    if loss is None:
        v.fail(
            where,
            "loss=None takes the loss that the model returns, as .loss or as the only scalar: give "
            "the model labels in its batch, or pass loss=",
            f"{type(out).__name__}{_named(fields_of(out) or {})}",
            TypeError,
        )
    return loss.reshape(1)


def loss_in(out: Any) -> Tensor | None:
    """``.loss`` of what a model returned, or its only scalar; None where there is none."""
    named = fields_of(out) or {}
    loss = named.get("loss")
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    scalars = [t for t in _tensors(out) if t.dim() == 0 and t.is_floating_point()]
    return scalars[0] if len(scalars) == 1 else None


def _named(named: Mapping[str, Any]) -> str:
    return f" ({', '.join(named)})" if named else ""


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    named = fields_of(value)
    if named is not None:
        value = list(named.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
