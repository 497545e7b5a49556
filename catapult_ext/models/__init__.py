"""Networks of the experiments, in NTK and standard parameterisation."""

from __future__ import annotations

from catapult_ext.models.cnn import small_cnn
from catapult_ext.models.dense import fully_connected
from catapult_ext.models.initialise import PARAMETERISATIONS, initialise
from catapult_ext.models.layers import ACTIVATIONS, Abs, Erf, NTKConv2d, NTKLinear, activation

__all__ = [
    "ACTIVATIONS",
    "PARAMETERISATIONS",
    "Abs",
    "Erf",
    "NTKConv2d",
    "NTKLinear",
    "activation",
    "fully_connected",
    "initialise",
    "small_cnn",
]
