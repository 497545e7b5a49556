"""The race: check every contender against the oracle, then time them interleaved."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[float, Any, float]  # seconds, result, peak bytes above the start (nan: not asked)


@dataclass
class Contender:
    """One way to do a row's work.

    Attributes:
        name: package and method, as in the table.
        calls: setting -> call(case); of several settings (loosest first) the race takes the first
            whose true error is small enough on every case.
        products: number of products of the last call, where it counts them.
        remote: calls time themselves and return an Answer (another environment).
        ours: this package.
    """

    name: str
    calls: dict[str, Callable[[int], Any]]
    products: Callable[[], int] | None = None
    remote: bool = False
    ours: bool = False


@dataclass
class Row:
    """One work item.

    Attributes:
        name: of the row.
        work: what is computed, in words.
        contenders: who competes.
        error: (case, result) -> true relative error, from a float64 oracle.
        allowed: largest true error.
        cases: problems (seeds) that each contender solves.
        notes: what a reader must know.
    """

    name: str
    work: str
    contenders: list[Contender]
    error: Callable[[int, Any], float]
    allowed: float
    cases: int = 1
    notes: list[str] = field(default_factory=list)


def _status(name: str) -> int:
    with open("/proc/self/status") as lines:
        return 1024 * next(int(row.split()[1]) for row in lines if row.startswith(name))


def measured(call: Callable[[int], Any], case: int, memory: bool = False) -> Answer:
    """Time one call; with ``memory`` also the peak of resident memory above the start (Linux)."""
    before = 0
    if memory:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the high-water mark
        before = _status("VmRSS")
    start = time.perf_counter()
    result = call(case)
    seconds = time.perf_counter() - start
    return seconds, result, float(_status("VmHWM") - before) if memory else float("nan")


def _ask(c: Contender, setting: str, case: int, memory: bool = False) -> Answer:
    if c.remote:
        return c.calls[setting](case)
    return measured(c.calls[setting], case, memory)


def _judge(c: Contender, row: Row) -> dict[str, Any]:
    """The loosest setting that is right on every case; how wrong the last one was otherwise."""
    out: dict[str, Any] = {}
    for setting in c.calls:
        errors = []
        products = []
        peak = 0.0
        seconds = []
        for case in range(row.cases):
            took, result, used = _ask(c, setting, case, memory=True)
            errors.append(row.error(case, result))
            peak, seconds = max(peak, used), [*seconds, took]
            if c.products is not None:
                products.append(c.products())
            if not errors[-1] <= row.allowed:
                break
        out = {"setting": setting, "error": max(errors), "peak_bytes": peak}
        out["products"] = statistics.median(products) if products else None
        out["once"] = statistics.median(seconds)
        out["right"] = max(errors) <= row.allowed
        if out["right"]:
            break
    if out["once"] > 2 and row.cases == 1 and not c.remote:
        out["once"] = _ask(c, out["setting"], 0)[0]  # without compilation
    return out


def race(row: Row, seconds: float, checks_only: bool = False, only: str = "") -> dict[str, Any]:
    """Run one row within about ``seconds`` (contenders whose name holds ``only``)."""
    began = time.perf_counter()
    found: dict[str, dict[str, Any]] = {}
    for c in row.contenders:
        try:
            if only and only not in c.name:
                continue
            found[c.name] = _judge(c, row)
        except Exception as problem:  # a peer that fails is a result
            found[c.name] = {"failed": f"{type(problem).__name__}: {problem}"[:200], "right": False}
        print(f"  {c.name}: {found[c.name]}", flush=True)
    able = [c for c in row.contenders if found.get(c.name, {}).get("right")]
    times: dict[str, list[float]] = {c.name: [] for c in able}
    rounds = 0
    while able and not checks_only and rounds < 25:
        for case in range(row.cases):
            for c in able:
                times[c.name].append(_ask(c, found[c.name]["setting"], case)[0])
        rounds += 1
        spent = time.perf_counter() - began
        round_takes = row.cases * sum(found[c.name]["once"] for c in able)
        if spent + round_takes > seconds:
            break
    for name, taken in times.items():
        if taken:
            found[name]["seconds"] = statistics.median(taken)
            found[name]["spread"] = (max(taken) - min(taken)) / statistics.median(taken)
            found[name]["runs"] = len(taken)
    ours = [c.name for c in row.contenders if c.ours]
    return {
        "work": row.work,
        "allowed": row.allowed,
        "cases": row.cases,
        "notes": row.notes,
        "ours": ours,
        "contenders": found,
    }


def ladder(settings: Sequence[float], make: Callable[[float], Callable[[int], Any]]) -> dict:
    """Calls by tolerance, loosest first."""
    return {f"tol {s:g}": make(s) for s in settings}
