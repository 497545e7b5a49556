"""Losses as the curvature operators see them: value, normaliser and output Hessian."""

from catapult_ext.losses.accepted import checked_reduction, resolve
from catapult_ext.losses.convert import CONVENTIONS, convert_lambda
from catapult_ext.losses.factors import (
    AutogradHessian,
    DiagonalFactor,
    OutputFactor,
    OutputHessian,
    RankOneFactor,
    SoftmaxFactor,
)
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

__all__ = [
    "ACCEPTED",
    "CONVENTIONS",
    "NAMED",
    "OWN_LOSS",
    "AutogradHessian",
    "BinaryCrossEntropy",
    "CallableLoss",
    "CrossEntropy",
    "DiagonalFactor",
    "LogLikelihood",
    "Loss",
    "OutputFactor",
    "OutputHessian",
    "RankOneFactor",
    "SoftmaxFactor",
    "SquaredLoss",
    "checked_reduction",
    "convert_lambda",
    "half_mse",
    "half_mse_mean",
    "resolve",
]


def __dir__() -> list[str]:
    return __all__
