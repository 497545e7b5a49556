"""The top eigenvalues of an operator that changes a little between calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._state import attributes, check_state, put
from catapult_ext.eig.certify import rounding
from catapult_ext.eig.operand import Operand, as_operand
from catapult_ext.eig.pairs import EigshResult, Options, Pairs
from catapult_ext.eig.refine import Refined, refine_for_tracker
from catapult_ext.eig.replicas.batch import is_batch
from catapult_ext.eig.replicas.tracking import ReplicaTracker
from catapult_ext.eig.solve import lifted, package, solve

_WHERE = "TopTracker"
_MOVED = 0.25  # relative change of a value that calls for a checked solve
_KIND = {"format": "catapult_ext TopTracker 3"}
_CHECK = ("_gaps", "_least", "_values", "_converged")
_STATE = ("k", "guards", "checks", "_block", "_earlier", "_leads", *_CHECK, "_since")


class TopTracker:
    """Follows the k largest eigenpairs through a sequence of similar operators.

    Every ``check_every``-th update is a warm-started checked solve as by
    :func:`catapult_ext.eigsh` (``index_check`` ``"random(p)"``).  An update that misses
    ``between``, or finds that a value has moved by a quarter since the last check, becomes a
    checked solve as well.  The others cost k + guards products if the errors are then within
    ``between``, else k more or a few times as many.  They start from the last wanted vectors, or,
    while these move evenly, from where their last movement leads.

    Between checks ``index_check`` is ``"inherited"``: the errors assume that the eigenvalues which
    the last check found after the k-th (for an explicit matrix by counting) still lie below it,
    each at no less than half of its distance at that check.  Relative to the values, the errors
    are no smaller than those of that check.  A new eigenvalue whose vector is orthogonal to all
    stored vectors is seen by the next check only.

    ``torch.save(tracker.state_dict(), path)`` stores the state of the tracker.  A tracker with the
    same arguments that has loaded it resumes with the same bits:

        tracker = cx.TopTracker(k=2)
        tracker.load_state_dict(torch.load(path, weights_only=True))

    Args:
        k: number of pairs.
        tol: relative error asked of checked solves.
        between: relative error asked of the updates between them, ``tol`` or more; default ``tol``.
        guards: number of further vectors stored, which reveal crossings; default 1 + k // 4.
        check_every: number of updates from one checked solve to the next; 1 checks every update.
        confidence: probability p of the checked solves.
        seed: seed of their random vectors; every check draws new ones.

    Raises:
        ValueError: options out of range.

    Examples:
        >>> tracker = cx.TopTracker(k=1)
        >>> for t in range(3):  # a slowly changing operator
        ...     found = tracker.update(torch.diag(torch.tensor([1.0, 2.0, 5.0 + 0.01 * t])))
        >>> round(float(found.eigenvalues[0]), 2)
        5.02
    """

    def __init__(
        self,
        k: int = 1,
        *,
        tol: float = 1e-3,
        between: float | None = None,
        guards: int | None = None,
        check_every: int = 10,
        confidence: float = 0.99,
        seed: int = 0,
    ) -> None:
        v.integers(_WHERE, k=k, check_every=check_every, seed=seed)
        v.integers(_WHERE, guards=guards, optional=True)
        v.numbers(_WHERE, tol=tol, confidence=confidence)
        v.numbers(_WHERE, between=between, optional=True)
        v.require(k >= 1, _WHERE, "k must be >= 1", k)
        v.require(0 < tol < 1, _WHERE, "tol must be in (0, 1)", tol)
        v.require(guards is None or guards >= 0, _WHERE, "guards must be >= 0", guards)
        v.require(check_every >= 1, _WHERE, "check_every must be >= 1", check_every)
        v.require(0 < confidence < 1, _WHERE, "confidence must be in (0, 1)", confidence)
        self.k, self.tol, self.check_every = k, tol, check_every
        self.between = tol if between is None else between
        least = f"between must be in [tol, 1), tol={tol:g}"
        v.require(tol <= self.between < 1, _WHERE, least, between)
        self.guards = 1 + k // 4 if guards is None else guards
        self.confidence, self.seed = confidence, seed
        self.checks = 0
        self._replicas: ReplicaTracker | None = None  # where the operators are batches
        self._block: Tensor | None = None  # (k + guards, n) rows
        self._earlier: Tensor | None = None  # (k, n) the wanted vectors of the update before
        self._leads = False  # whether their movement led to where they are now
        self._gaps: list[float] = []  # of the last check (Pairs.gaps)
        self._least: Tensor | None = None  # its relative errors
        self._values: Tensor | None = None  # found by that check
        self._since = 0
        self._converged = True  # the last check

    @property
    def warm(self) -> bool:
        """Whether the next update has something to start from."""
        return self._block is not None or self._replicas is not None

    def grow(self, k: int) -> None:
        """Follow ``k`` pairs from now on; the next update is a checked solve."""
        v.require(k >= self.k, _WHERE, f"k can only grow beyond {self.k}", k)
        self.k, self.guards = k, max(self.guards, 1 + k // 4)
        self._since = self.check_every  # the next is checked

    def state_dict(self) -> dict[str, Any]:
        """State carried from update to update: copies of tensors, numbers, lists of them."""
        replicas = None if self._replicas is None else self._replicas.state_dict()
        return {**_KIND, **attributes(self, _STATE), "replicas": replicas}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a :meth:`state_dict`, of a tracker with the same arguments.

        Raises:
            TypeError, ValueError: the state of something else.
        """
        check_state(f"{_WHERE}.load_state_dict", state, _KIND, (*_STATE, "replicas"))
        put(self, _STATE, state)
        self._replicas = None
        if state["replicas"] is not None:
            self._replicas = ReplicaTracker(self.check_every, _MOVED)
            self._replicas.load_state_dict(state["replicas"])

    def keep(self, replicas: Sequence[int] | Tensor) -> None:
        """Go on with some of R operators alone: the next update takes a batch of these.

        Args:
            replicas: their numbers within the last batch, in the order in which they come next.

        Raises:
            ValueError: no batch was followed, or numbers that it did not have.
        """
        needs = "keep needs a tracker that has followed a batch (R, n, n)"
        v.require(self._replicas is not None, _WHERE, needs, type(self._replicas).__name__)
        assert self._replicas is not None
        index, count = torch.as_tensor(replicas, device="cpu").flatten(), len(self._replicas)
        fits = len(index) > 0 and bool(((index >= 0) & (index < count)).all())
        v.require(fits, _WHERE, f"replicas must be numbers below {count}", index.tolist())
        self._replicas.keep(index.long())

    @no_autocast()
    def update(self, A: Any, *, check: bool = False) -> EigshResult:
        """The k largest eigenpairs of ``A``, as in :func:`catapult_ext.eigsh`.

        Args:
            A: operator of the same kind and size as before (another size starts cold); where it
                offers ``dual()``, the smaller one is followed.  Or R of them, (R, n, n), as
                :func:`catapult_ext.eigsh` takes them: replicas are refined together, and only
                those that miss ``tol`` or moved are solved again between the checks of all.
            check: make this one a checked solve.

        Returns:
            :class:`~catapult_ext.EigshResult` with k entries (n if that is fewer), of a batch
            :class:`~catapult_ext.BatchedEigshResult`; ``matvecs``
            counts everything this update multiplied, a failed attempt included.
        """
        if is_batch(A):
            return self._update_replicas(A, check)
        large = as_operand(A, _WHERE)
        dual = A.dual() if hasattr(A, "dual") else None
        if dual is not None and self.k <= dual.operator.shape[0]:
            pairs = self._pairs(as_operand(dual.operator, _WHERE), self.k, check)
            # the null space of the large operator is not in the image of the small one
            floor = 10 * rounding(large.n, torch.finfo(large.dtype).eps) * pairs.values[0].abs()
            if pairs.values[-1] > floor:
                return package(lifted(pairs, dual, large), self._options(self.k, large), large)
        k = min(self.k, large.n)
        return package(self._pairs(large, k, check), self._options(k, large), large)

    def _update_replicas(self, A: Any, check: bool) -> EigshResult:
        if self._replicas is None:
            self._replicas = ReplicaTracker(self.check_every, _MOVED)
        limit = 1000 + 20 * self.k
        o = Options(self.k, "LA", self.tol, limit, self.seed, self.confidence, _WHERE, self.guards)
        found = self._replicas.update(A, o, check, self.between)
        self.checks = self._replicas.checks
        return found

    def _pairs(self, a: Operand, k: int, check: bool) -> Pairs:
        if self._block is not None and self._block.shape[1] != a.n:
            self._block = self._earlier = None
        if self._block is not None and self._values is not None:
            # a state may have been loaded to another device
            self._block, self._values = self._block.to(a.device), self._values.to(a.device)
            self._earlier = None if self._earlier is None else self._earlier.to(a.device)
        before = None if self._block is None else self._block[:k]
        due = check or self._block is None or self._since + 1 >= self.check_every
        due = due or not self._converged
        refined = None if due else self._refined(a, k)
        if refined is None or not refined.pairs.converged or self._moved(refined.pairs):
            if refined is not None:
                self._block = refined.block.to(dtype=a.dtype, device=a.device)
            pairs = self._checked(a, k, 0 if refined is None else refined.pairs.matvecs)
            block = torch.cat([pairs.x, pairs.guards])
        else:
            self._since += 1
            pairs, block = refined.pairs, refined.block
        self._block = block.to(dtype=a.dtype, device=a.device)
        self._watch(before, self._block[:k])
        return pairs

    def _start(self, k: int) -> Tensor:
        """Rows from which this update starts."""
        assert self._block is not None
        if not self._leads or self._earlier is None:
            return self._block
        return torch.cat([_led(self._earlier, self._block[:k]), self._block[k:]])

    def _watch(self, before: Tensor | None, found: Tensor) -> None:
        """Note how the wanted vectors moved: rows (k, n) found, from ``before``."""
        earlier, self._earlier, self._leads = self._earlier, before, False
        if before is not None and earlier is not None and len(earlier) == len(before):
            led = _led(earlier, before)
            self._leads = _distance(found, led) < _distance(found, before)

    def _moved(self, pairs: Pairs) -> bool:
        assert self._values is not None
        now = pairs.values * pairs.scale
        return bool(((now - self._values).abs() > _MOVED * self._values.abs()).any())

    def _options(self, k: int, a: Operand) -> Options:
        limit = 1000 + 20 * k
        guards = min(self.guards, a.n - k)
        seed = self.seed + self.checks
        return Options(k, "LA", self.tol, limit, seed, self.confidence, _WHERE, guards)

    def _checked(self, a: Operand, k: int, spent: int) -> Pairs:
        start = None if self._block is None else self._block[:k].T
        pairs = solve(a, start, self._options(k, a))
        self.checks, self._since = self.checks + 1, 0
        self._values = pairs.values * pairs.scale
        self._gaps, self._converged = pairs.gaps, pairs.converged
        # the check excludes hidden eigenvalues beyond its own errors, nearer ones it does not
        self._least = pairs.errors / pairs.values.abs().cpu().clamp_min(1e-300)
        return replace(pairs, matvecs=pairs.matvecs + spent)

    def _refined(self, a: Operand, k: int) -> Refined | None:
        assert self._block is not None
        assert self._least is not None
        gaps, tol = self._gaps, self.between
        found = refine_for_tracker(a, self._start(k), k, gaps, tol, _WHERE)
        if found is None:
            return None
        least = self._least * found.pairs.values.abs().cpu()
        errors = torch.maximum(found.pairs.errors, least)
        return replace(found, pairs=replace(found.pairs, errors=errors))


def _led(earlier: Tensor, now: Tensor) -> Tensor:
    """Unit rows (k, n) as far beyond the span of ``now`` as this is from that of ``earlier``."""
    rows = 2 * now - (now @ earlier.T) @ earlier
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)


def _distance(found: Tensor, guess: Tensor) -> float:
    """Length of the part of rows ``found`` outside the span of rows ``guess``."""
    q = torch.linalg.qr(guess.T)[0]
    return (found - (found @ q) @ q.T).norm().item()
