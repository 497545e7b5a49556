"""B v of the vectors v that a solver multiplied by A = B'B, for combinations of them.

A product with A makes B v on its way.  The eigenvectors that a Krylov solver returns are
combinations of what it multiplied, so that B of them is the same combination: no product more.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROOM = 128 << 20  # bytes of vectors that are kept; beyond, B is applied again
_PIECE = 1 << 14  # entries of each that are combined at a time


class KeptHalves:
    """Store of pairs v (n,) and B v (p,), at most 128 MiB in total."""

    def __init__(self) -> None:
        self._room = _ROOM
        self._vectors: list[Tensor] = []
        self._halves: list[Tensor] = []

    @property
    def wanted(self) -> bool:
        """Whether all products so far are kept, so that more of them serve."""
        return self._room >= 0

    def keep(self, vectors: Tensor, halves: Tensor) -> None:
        """Take B v (p, K), which nobody else changes, for v (n, K)."""
        self._room -= (vectors.numel() + halves.numel()) * vectors.element_size()
        if self._room < 0:
            self._vectors, self._halves = [], []
            return
        # a solver moves its basis in place
        self._vectors += vectors.detach().T.clone().unbind()
        self._halves += halves.unbind(1)

    def combined(self, vectors: Tensor) -> Tensor | None:
        """B u (p, K) for u (n, K); None unless each u is a combination of what was multiplied.

        Cost: three passes over the vectors kept.
        """
        if not self._vectors:
            return None
        kept = torch.stack(self._vectors)
        gram = (kept @ kept.T).double().cpu()
        weights, rest = gram.new_zeros(len(kept), vectors.shape[1]), vectors
        for _ in range(3):  # long sums of float32 are right to three digits only
            step = torch.linalg.lstsq(gram, (kept @ rest).double().cpu(), driver="gelsd").solution
            weights += step
            rest = rest - kept.T @ step.to(rest)
        eps, size = torch.finfo(vectors.dtype).eps, vectors.norm(dim=0)
        spanned = bool((rest.norm(dim=0) <= 32 * eps * size).all())
        # kept vectors that cancel would blow the rounding of their B v up
        parts = weights * gram.diagonal().sqrt()[:, None]
        if not spanned or not bool((parts.norm(dim=0) <= 2 * size.double().cpu()).all()):
            return None
        weights = weights.T.to(vectors)
        out = vectors.new_empty(len(weights), len(self._halves[0]))
        pieces = zip(*(half.split(_PIECE) for half in self._halves), strict=True)
        for part, piece in zip(out.split(_PIECE, 1), pieces, strict=True):
            torch.mm(weights, torch.stack(piece), out=part)
        return out.T
