"""Lanczos of several start vectors, each with a Krylov space of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from catapult_ext.systems.problem import System

AT_ONCE = 8  # columns multiplied together
LAG = 5  # steps between two looks at what they have brought


class Lanczos:
    """Lanczos of each column by itself, (n, k) multiplied together, all of it kept orthogonal."""

    def __init__(self, system: System, start: Tensor, most: int) -> None:
        self.system = system
        n, k = start.shape
        self.sizes = start.norm(dim=0)
        self.most = min(most, n)
        self.v = start.new_zeros(k, self.most + 1, n)
        self.v[:, 0] = (start / self.sizes.clamp_min(1e-300)).T
        self.alpha = start.new_zeros(k, self.most)
        self.beta = start.new_zeros(k, self.most)  # the last one leads out of the space
        self.m = 0
        self.ended = self.sizes == 0  # (k,)
        self.length = torch.where(self.ended, 0, self.most)  # steps of each column
        self.matvecs = 0

    def step(self) -> None:
        """One product with every column whose space has not ended."""
        live = (~self.ended).nonzero().flatten()
        q = self.v[live, self.m]
        w = self.system.product(q.T.contiguous()).T
        self.matvecs += len(live)
        self.alpha[live, self.m] = (q * w).sum(1)
        basis = self.v[live, : self.m + 1]
        size = w.norm(dim=1)
        for _ in range(2):
            w = w - ((basis @ w[..., None]).transpose(1, 2) @ basis)[:, 0]
        beta = w.norm(dim=1)
        self.m += 1
        eps = torch.finfo(torch.float64).eps
        over = beta <= 4 * eps * len(w.T) ** 0.5 * size.clamp_min(1e-300)
        over |= self.m >= w.shape[1]
        self.beta[live, self.m - 1] = torch.where(over, torch.zeros_like(beta), beta)
        self.ended[live[over]] = True
        self.length[live[over]] = self.m
        if self.m < self.v.shape[1]:
            next_one = w / beta.clamp_min(1e-300)[:, None]
            self.v[live, self.m] = torch.where(over[:, None], torch.zeros_like(w), next_one)

    def ritz(self, column: int, steps: int) -> tuple[Tensor, Tensor]:
        """Ritz values of the first ``steps`` of a column, and their vectors' coefficients."""
        alpha, beta = self.alpha[column, :steps], self.beta[column, : steps - 1]
        t = torch.diag(alpha) + torch.diag(beta, 1) + torch.diag(beta, -1)
        return torch.linalg.eigh(t)
