"""The engine of torch.func.linearize, which stores a tangent program in a long set-up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.linops.engines.autograd import AutogradLinearization
from catapult_ext.linops.engines.transpose_proof import mismatch
from catapult_ext.linops.model.fixed_model import FixedModel


class TorchLinearization(AutogradLinearization):
    """J' as in autograd; J from torch.func.linearize, which stores the tangent program."""

    engine = "linearize"
    hvp_modes = None
    second_of_chunks = False

    def __init__(self, snapshot: FixedModel) -> None:
        super().__init__(snapshot, snapshot.forward())
        self._trusted = False  # the tangents were seen to be the transpose of the gradients
        names = snapshot.names

        def of_params(*params: Tensor) -> Tensor:
            return snapshot.outputs(dict(zip(names, params, strict=True)))

        leaves = [p.detach() for p in self._leaves]
        try:
            with snapshot.aside(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's own tracing
                _, self._tangent = torch.func.linearize(of_params, *leaves)
        except Exception as error:
            raise RuntimeError(
                f"catapult_ext.{snapshot.where}: torch.func.linearize cannot handle this model "
                f"(try engine='autograd'): {error}"
            ) from error

    @classmethod
    def recorder(cls, snapshot: FixedModel) -> None:
        """None: its set-up takes seconds, so that it serves by name alone."""

    @classmethod
    def build(cls, snapshot: FixedModel) -> TorchLinearization:
        """This engine by ``torch.func.linearize``."""
        return cls(snapshot)

    @classmethod
    def build_to_measure(cls, snapshot: FixedModel) -> AutogradLinearization:
        """The autograd engine, which keeps as much."""
        return AutogradLinearization.build(snapshot)

    def jvp(self, t: Tensor) -> Tensor:
        """J t: (P, K) to (N*O, K); the first product checks the transpose."""
        if not self._trusted:
            self._check_transpose()
            self._trusted = True
        return self._pushed(t)

    def _check_transpose(self) -> None:
        """Twice: traced programs may change their own constants (LSTM, torch 2.13)."""

        def vjp(u: Tensor, which: Sequence[int]) -> list[Tensor | None]:
            return self._blocks(u[:, 0], which)

        def product(blocks: Sequence[Tensor | None]) -> Tensor:
            with self.snapshot.policy.seeded(self.snapshot.device):
                return self._tangent(*blocks)

        for _ in range(2):
            why = mismatch(self.snapshot, self.rows, product, vjp)
            v.require(
                not why,
                self.snapshot.where,
                "engine='linearize' must give the transpose of the gradients; torch.func.linearize "
                "does not for this model (leave engine out)",
                why,
            )

    def _pushed(self, t: Tensor) -> Tensor:
        snapshot = self.snapshot
        columns = []
        for k in range(t.shape[1]):
            # the tangent program draws its masks anew: from the same seed, the same masks
            with torch.no_grad(), snapshot.policy.seeded(snapshot.device):
                out = self._tangent(*snapshot.split(t[:, k].contiguous()))
            columns.append(out.reshape(-1))
        return torch.stack(columns, 1)
