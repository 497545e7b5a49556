"""Ritz pairs of R replicas: what the solvers fill, and the public result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from catapult_ext._shown import first
from catapult_ext.eig.pairs import EigshResult, Pairs

NOT_FINITE = "not finite"  # the index check of a replica with non-finite values


@dataclass(frozen=True, eq=False, repr=False)
class BatchedEigshResult(EigshResult, saved=True):
    """Eigenpairs of R operators (R, n, n); entry r is the :class:`EigshResult` of replica r.

    Attributes:
        eigenvalues: (R, k) descending (``which="LM"``: by magnitude), dtype of the operator; NaN
            for a replica with non-finite values.
        eigenvectors: (R, n, k), unit columns.
        residuals: (R, k) |A x - lambda x|.
        errors: (R, k) bounds of the errors, as for one operator.
        matvecs: (R,) int64 on the CPU, products with each operator (or its dual), in columns.
        converged: (R,) bool on the CPU.
        index_check: R strings as for one operator; ``"not finite"`` for a replica with non-finite
            values.

    Examples:
        >>> matrices = torch.diag_embed(torch.tensor([[1.0, 2.0], [3.0, 7.0]]))
        >>> found = cx.eigsh(matrices)
        >>> [round(value, 2) for value in found.eigenvalues[:, 0].tolist()]
        [2.0, 7.0]
    """

    matvecs: Tensor  # type: ignore[assignment]
    converged: Tensor  # type: ignore[assignment]
    index_check: tuple[str, ...]  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.index_check)

    def __getitem__(self, r: int) -> EigshResult:
        return EigshResult(
            eigenvalues=self.eigenvalues[r],
            eigenvectors=self.eigenvectors[r],
            residuals=self.residuals[r],
            errors=self.errors[r],
            matvecs=int(self.matvecs[r]),
            converged=bool(self.converged[r]),
            index_check=self.index_check[r],
        )

    def _figure(self, replica: int = 0) -> Any:
        """Eigenvalues of one replica against their rank."""
        return self[replica]._figure()

    def _line(self) -> str:
        tops = self.eigenvalues[:, 0].tolist()
        missed = len(self) - int(self.converged.sum())
        left = f", {missed} NOT converged" if missed else ""
        return (
            f"{self.eigenvalues.shape[1]} eigenvalues of each of {len(self)} replicas of "
            f"{self.eigenvectors.shape[1]}: largest {first(tops)} "
            f"({int(self.matvecs.sum())} products{left})"
        )

    def _table(self) -> list[dict[str, Any]]:
        return [{"replica": r, **row} for r in range(len(self)) for row in self[r]._table()]

    def _picture(self) -> Any:
        return None


@dataclass(eq=False)
class Found:
    """Pairs of R replicas: rows of x (R, k, n); the numbers in float64 on the CPU, unscaled."""

    values: Tensor
    x: Tensor
    residuals: Tensor
    errors: Tensor
    converged: Tensor
    matvecs: Tensor
    index: list[str]
    # of solves for a tracker: (R, g, n) further Ritz vectors, and bounds (R, g + 1) of what follows
    guards: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    following: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))

    @classmethod
    def nothing(
        cls, replicas: int, n: int, k: int, dtype: torch.dtype, device: torch.device
    ) -> Found:
        """A result with NaN for all replicas."""
        nan = torch.full((3, replicas, k), torch.nan, dtype=torch.float64, device="cpu")
        return cls(
            values=nan[0],
            x=torch.full((replicas, k, n), torch.nan, dtype=dtype, device=device),
            residuals=nan[1],
            errors=nan[2],
            converged=torch.zeros(replicas, dtype=torch.bool, device="cpu"),
            matvecs=torch.zeros(replicas, dtype=torch.int64, device="cpu"),
            index=[NOT_FINITE] * replicas,
        )

    def put(self, index: Tensor, other: Found) -> None:
        """Take over the pairs of the replicas ``index``; products add up."""
        self.values[index], self.errors[index] = other.values, other.errors
        self.residuals[index] = other.residuals
        self.x[index.to(self.x.device)] = other.x.to(self.x)
        self.converged[index] = other.converged
        self.matvecs[index] += other.matvecs
        if len(other.guards) and len(self.guards):
            self.guards[index.to(self.x.device)] = other.guards.to(self.guards)
        if len(other.following) and len(self.following):
            self.following[index] = other.following
        for at, check in zip(index.tolist(), other.index, strict=True):
            self.index[at] = check

    def put_pairs(self, r: int, p: Pairs) -> None:
        """Take over what the solver for one operator found."""
        self.values[r], self.errors[r] = p.values.cpu() * p.scale, p.errors * p.scale
        self.residuals[r] = p.rest.norm(dim=1).cpu() * p.scale
        self.x[r] = p.x.to(self.x)
        self.converged[r], self.index[r] = p.converged, p.index
        self.matvecs[r] += p.matvecs
