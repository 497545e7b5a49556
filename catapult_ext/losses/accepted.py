"""The losses that a user may pass."""

from __future__ import annotations

from collections.abc import Hashable

import torch.nn.functional as F
from torch import nn

from catapult_ext import _validate as v
from catapult_ext.losses.log_likelihood import LogLikelihood
from catapult_ext.losses.loss import (
    ACCEPTED,
    NAMED,
    OWN_LOSS,
    BinaryCrossEntropy,
    CallableLoss,
    CrossEntropy,
    Loss,
    SquaredLoss,
    half_mse,
    half_mse_mean,
)

_MEANT = (half_mse, half_mse_mean, nn.MSELoss(), nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss())
_BY_NAME: dict[str, object] = dict(zip(NAMED, _MEANT, strict=True))
# functions that a loss module calls with its defaults
_OF_FUNCTION: dict[object, object] = {
    F.mse_loss: nn.MSELoss(),
    F.cross_entropy: nn.CrossEntropyLoss(),
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss(),
    F.nll_loss: nn.NLLLoss(),
}


def resolve(loss: object) -> Loss:
    """Turn what a user passes as ``loss`` into a :class:`Loss`.

    Args:
        loss: a :class:`Loss`; a torch MSELoss, CrossEntropyLoss, BCEWithLogitsLoss, NLLLoss or
            KLDivLoss that reduces, or its functional form (``F.cross_entropy``); the names
            ``"mse"``, ``"cross_entropy"`` and ``"bce"`` for these losses with default settings;
            ``"half_mse"`` (1/2N sum) or ``"half_mse_mean"`` (1/2NO sum); or a callable ``(outputs,
            targets) -> scalar`` (including other torch loss modules).  None is ``OWN_LOSS``, the
            loss that the model returns itself.

    Raises:
        ValueError: unknown name, or ``reduction='none'``.
        TypeError: anything else.

    Examples:
        >>> cx.losses.resolve(nn.MSELoss()).name
        'MSELoss'
    """
    if isinstance(loss, str):
        shown = f"{loss!r}{v.nearest(loss, NAMED)}"
        v.require(loss in NAMED, "losses", f"loss must be one of {', '.join(NAMED)}", shown)
        loss = _BY_NAME[loss]
    loss = _OF_FUNCTION.get(loss, loss) if isinstance(loss, Hashable) else loss
    if loss is None:
        return OWN_LOSS
    if isinstance(loss, Loss):
        return loss
    if getattr(loss, "reduction", None) == "none":
        v.fail("losses", "reduction must be 'mean' or 'sum'", "'none'")
    # exact types: a subclass may compute something else
    if type(loss) is nn.MSELoss:
        return SquaredLoss("MSELoss", 1.0, "entries" if loss.reduction == "mean" else "none")
    if type(loss) is nn.CrossEntropyLoss:
        return CrossEntropy(loss)
    if type(loss) is nn.BCEWithLogitsLoss:
        return BinaryCrossEntropy(loss)
    if isinstance(loss, (nn.NLLLoss, nn.KLDivLoss)) and type(loss) in (nn.NLLLoss, nn.KLDivLoss):
        return LogLikelihood(loss, type(loss).__name__)
    if not callable(loss) or isinstance(loss, type):
        shown = loss.__name__ if isinstance(loss, type) else type(loss).__name__
        v.fail("losses", f"a loss must be {ACCEPTED}, or a callable", shown, TypeError)
    name = getattr(loss, "__name__", type(loss).__name__)
    return CallableLoss(loss, name)


def checked_reduction(reduction: str | None, where: str) -> str | None:
    """Reduction of a callable loss over samples: ``"mean"``, ``"sum"`` or, if unknown, None."""
    known = reduction in (None, "mean", "sum")
    v.require(known, where, "reduction must be 'mean' or 'sum'", repr(reduction))
    return reduction
