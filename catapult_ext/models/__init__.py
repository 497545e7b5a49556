"""Networks of the experiments, in NTK and standard parameterisation."""

from __future__ import annotations

from catapult_ext.models.batch_norm import (
    BATCH_STATS,
    CoupledBatchNorm,
    batch_stats_held,
    has_batch_norm,
    with_batch_stats,
)
from catapult_ext.models.cnn import paper_cnn, small_cnn
from catapult_ext.models.dense import fully_connected
from catapult_ext.models.initialise import PARAMETERISATIONS, initialise
from catapult_ext.models.layers import ACTIVATIONS, Abs, Erf, NTKConv2d, NTKLinear, activation
from catapult_ext.models.registry import NAMES, build
from catapult_ext.models.resnet import resnet, wide_resnet
from catapult_ext.models.transformers import char_gpt, small_vit

__all__ = [
    "ACTIVATIONS",
    "BATCH_STATS",
    "NAMES",
    "PARAMETERISATIONS",
    "Abs",
    "CoupledBatchNorm",
    "Erf",
    "NTKConv2d",
    "NTKLinear",
    "activation",
    "batch_stats_held",
    "build",
    "char_gpt",
    "fully_connected",
    "has_batch_norm",
    "initialise",
    "paper_cnn",
    "resnet",
    "small_cnn",
    "small_vit",
    "wide_resnet",
    "with_batch_stats",
]


def __dir__() -> list[str]:
    return __all__
