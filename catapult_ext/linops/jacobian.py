"""The Jacobian of a model's outputs by its parameters, and its transpose, as operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from catapult_ext._autocast import no_autocast
from catapult_ext._batches import inputs_of
from catapult_ext._progress import Progress, counted, shared
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.choose import Options, freeze
from catapult_ext.linops.model.snapshot import Inputs
from catapult_ext.linops.model_operator import ModelOperator

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Jacobian(ModelOperator):
    """J[(n,o), p] = df_no/dtheta_p, (N*O, P); ``J.T`` is the transpose, ``J @ (J.T @ u)`` the NTK.

    Flat index n*O + o; parameters in ``named_parameters`` order.  The forward pass runs once.

    Args:
        model: any module with outputs (N,) or (N, d1, ..., dk), O = d1 * ... * dk in C order.
        x: inputs, as for :class:`~catapult_ext.NTK`.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Raises:
        TypeError, ValueError: see :class:`~catapult_ext.linops.model.snapshot.Snapshot`.

    Examples:
        >>> net, x = nn.Linear(3, 2), torch.randn(5, 3)
        >>> J = cx.Jacobian(net, x)
        >>> u = torch.randn(10)
        >>> torch.allclose(J @ (J.T @ u), cx.NTK(net, x) @ u, atol=1e-5)
        True
    """

    name = "Jacobian"
    symmetric = False

    @no_autocast()
    def __init__(self, model: nn.Module, x: Inputs, **options: Unpack[Options]) -> None:
        x = inputs_of(x, self.name)
        self._set_up(freeze(model, x, where=self.name, probe=self.probe, **options))

    @classmethod
    def of(cls, linearization: Linearization) -> Jacobian:
        """The Jacobian of a model that is linearized already, without a forward pass."""
        return cls._of(linearization)

    def _set_up(self, linearization: Linearization) -> None:
        self._use(linearization)
        self.shape = (linearization.rows, linearization.n_params)

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self.linearization.jvp(vectors)

    def _rmatmat(self, vectors: Tensor) -> Tensor:
        return self.linearization.vjp(vectors)

    @no_autocast()
    def dense(self, *, progress: Progress = None) -> Tensor:
        """The explicit matrix J (N*O, P), by one backward pass per row.

        Args:
            progress: True for a bar, or a function of (rows done, rows).

        Raises:
            ValueError: the matrix exceeds the memory budget or the free memory.
        """
        where, rows = f"{self.name}.dense", self.shape[0]
        self._check_room(where)
        with counted(progress, where, rows, "rows") as counter, shared(counter):
            out = self.linearization.jacobian()
            counter.at(rows)
        return out
