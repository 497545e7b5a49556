"""The two-layer linear network of the catapult paper, exact at any width."""

from __future__ import annotations

from catapult_ext.toy.initial import ReducedState, draw_reduced, draw_weights
from catapult_ext.toy.simulate import Trajectory, simulate

__all__ = ["ReducedState", "Trajectory", "draw_reduced", "draw_weights", "simulate"]
