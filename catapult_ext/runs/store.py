"""Deprecated path of ``catapult_ext.runs``."""

from __future__ import annotations

from catapult_ext import _deprecated

__getattr__ = _deprecated.module(__name__, "catapult_ext._store", "catapult_ext.runs")
