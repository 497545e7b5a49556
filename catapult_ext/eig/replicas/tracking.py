"""The top eigenvalues of R operators that change a little between calls: TopTracker's batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from catapult_ext._state import attributes, put
from catapult_ext.eig.certify import rounding
from catapult_ext.eig.pairs import Options
from catapult_ext.eig.replicas.batch import Batch, as_batch
from catapult_ext.eig.replicas.dense import solve_matrices
from catapult_ext.eig.replicas.eigsh import lifted, package, unit_rows
from catapult_ext.eig.replicas.lanczos import solve_replicas
from catapult_ext.eig.replicas.pairs import BatchedEigshResult, Found
from catapult_ext.eig.replicas.refine import refine_replicas

_STATE = ("checks", "_count", "_block", "_since", "_updates")
_CHECKED = ("values", "least", "gaps", "converged")


@dataclass(frozen=True, eq=False)
class _Check:
    """Result of each replica's last checked solve."""

    values: Tensor  # (R, k)
    least: Tensor  # (R, k) relative errors
    gaps: Tensor  # (R, guards + 1)
    converged: Tensor  # (R,)

    def put(self, index: Tensor, other: _Check) -> None:
        """Take over a later check of some replicas."""
        self.values[index], self.least[index] = other.values, other.least
        self.gaps[index], self.converged[index] = other.gaps, other.converged

    def of(self, index: Tensor) -> _Check:
        """The entries of some replicas."""
        return _Check(
            self.values[index], self.least[index], self.gaps[index], self.converged[index]
        )


class ReplicaTracker:
    """The state of a :class:`~catapult_ext.TopTracker` that follows R replicas.

    Replicas are refined together, guards included; those that miss ``between``, moved by more than
    ``moved``, or whose last check did not converge, get a checked solve together, all of them every
    ``check_every``-th update.  Explicit matrices are proved at every update.
    """

    def __init__(self, check_every: int, moved: float) -> None:
        self.check_every, self.moved = check_every, moved
        self.checks = 0
        self._count = 0  # replicas of the last batch, explicit ones too, of which nothing is stored
        self._block: Tensor | None = None  # (R, k + guards, n)
        self._check: _Check | None = None
        self._since = self._updates = 0

    def __len__(self) -> int:
        return self._count

    def keep(self, index: Tensor) -> None:
        """Go on with the replicas ``index`` (on the CPU) alone."""
        self._count = len(index)
        if self._block is not None and self._check is not None:
            self._block = self._block[index.to(self._block.device)]
            self._check = self._check.of(index)

    def state_dict(self) -> dict[str, Any]:
        """The replicas' part of :meth:`catapult_ext.TopTracker.state_dict`."""
        check = None if self._check is None else attributes(self._check, _CHECKED)
        return {**attributes(self, _STATE), "check": check}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` kept."""
        put(self, _STATE, state)
        check = state["check"]
        self._check = None if check is None else _Check(**{n: check[n].clone() for n in _CHECKED})

    def update(self, A: Any, o: Options, check: bool, between: float) -> BatchedEigshResult:
        """The k largest pairs of each replica; ``o.seed`` grows by the updates made so far.

        ``between`` is the relative error asked of replicas that are not checked, ``o.tol`` of those
        that are.

        A replica's numbers do not depend on which other ones are followed.
        """
        self._updates += 1
        large = as_batch(A, o.where)
        dual = A.dual() if hasattr(A, "dual") else None
        if dual is None or o.k > dual.operator.shape[1]:
            return package(self._found(large, o, check, between), o, large)
        small = self._found(as_batch(dual.operator, o.where), o, check, between)
        found = lifted(small, dual, large)
        # the null space of the large operators is not in the image of the small ones
        floor = 10 * rounding(large.n, large.eps) * found.values[:, 0].abs()
        null = (found.values[:, -1] <= floor).nonzero().flatten()
        if len(null):
            found.put(null, solve_replicas(large.select(null), None, replace(o, guards=None)))
        return package(found, o, large)

    def _found(self, a: Batch, o: Options, check: bool, between: float) -> Found:
        o = replace(o, k=min(o.k, a.n))
        o = replace(o, guards=min(o.guards or 0, a.n - o.k))
        self._count = a.replicas
        if a.explicit:
            self.checks += 1
            return solve_matrices(a, None, replace(o, guards=None))
        block, state = self._block, self._check
        known = block is not None and block.shape[::2] == (a.replicas, a.n)
        if block is None or state is None or not known or state.values.shape[1] != o.k:
            block = state = None
        if block is None or state is None or check or self._since + 1 >= self.check_every:
            self._since = 0
            return self._checked(a, torch.arange(a.replicas, device="cpu"), block, o, None)
        self._since += 1

        def ends(at: Tensor, values: Tensor) -> Tensor:
            then = state.values[at]
            moved = ((values - then).abs() > self.moved * then.abs()).any(1)
            return moved | ~state.converged[at]

        found = refine_replicas(a, block, o.k, state.gaps, between, ends)
        found.errors = torch.maximum(found.errors, state.least * found.values.abs())
        everyone = torch.arange(a.replicas, device="cpu")
        due = (~found.converged | ends(everyone, found.values)).nonzero().flatten()
        self._block = torch.cat([found.x, found.guards], dim=1)
        return self._checked(a, due, block, o, found) if len(due) else found

    def _checked(
        self, a: Batch, due: Tensor, block: Tensor | None, o: Options, found: Found | None
    ) -> Found:
        """A checked solve of the replicas ``due``, whose products add to those of ``found``."""
        start = None
        if block is not None:
            start = unit_rows(block[due.to(block.device), : o.k], a)
        part = a if len(due) == a.replicas else a.select(due)
        solved = solve_replicas(part, start, replace(o, seed=o.seed + self._updates))
        self.checks += 1
        size = solved.values.abs().amax(1, keepdim=True)
        gaps = ((solved.values[:, -1:] - solved.following) / size).clamp_min(0).nan_to_num(0.0)
        least = solved.errors / solved.values.abs().clamp_min(1e-300)
        check = _Check(solved.values.clone(), least, gaps, solved.converged.clone())
        rows = torch.cat([solved.x, solved.guards], dim=1)
        if found is None or self._check is None or self._block is None:
            self._block, self._check = rows, check
            return solved
        self._check.put(due, check)
        self._block[due.to(rows.device)] = rows
        found.put(due, solved)
        return found
