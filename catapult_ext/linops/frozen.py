"""A model frozen at its parameters on given inputs: Jacobian products without another forward pass.

Engines: ``layers`` (chains of dense layers, native products), ``linearize`` (torch.func.linearize and
a stored backward graph: cheapest products of any model, seconds of set-up), ``autograd`` (double
backward on the stored graph).  ``engine=None`` takes ``layers`` where the model is proven to be such
a chain and ``autograd`` elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.linops.snapshot import Inputs, Snapshot, _frozen_context

ENGINES = ("layers", "linearize", "autograd")


class Frozen:
    """Products with the Jacobian J (N*O, P) at fixed parameters.  Subclasses are the engines.

    ``outputs`` (N, O); flat output index n*O + o; parameters in ``named_parameters`` order.
    """

    engine: str

    def __init__(self, snapshot: Snapshot, outputs: Tensor) -> None:
        self.snapshot = snapshot
        self.outputs = outputs.detach()
        self.n_samples, self.n_outputs = outputs.shape
        self.n_params = snapshot.n_params
        self.dtype, self.device = snapshot.dtype, snapshot.device

    @property
    def rows(self) -> int:
        """N*O."""
        return self.n_samples * self.n_outputs

    def vjp(self, u: Tensor) -> Tensor:
        """J' u: (N*O, K) to (P, K)."""
        raise NotImplementedError

    def jvp(self, t: Tensor) -> Tensor:
        """J t: (P, K) to (N*O, K)."""
        raise NotImplementedError

    def ntk(self, u: Tensor) -> Tensor:
        """J J' u: (N*O, K) to (N*O, K)."""
        return self.jvp(self.vjp(u))


class AutogradFrozen(Frozen):
    """One kept graph: backward for J', backward through that backward for J."""

    engine = "autograd"

    def __init__(self, snapshot: Snapshot, outputs: Tensor | None = None) -> None:
        self._graph = snapshot.forward() if outputs is None else outputs
        super().__init__(snapshot, self._graph)
        self._leaves = list(snapshot.params.values())
        self._pullback: tuple[list[int], list[Tensor], Tensor] | None = None

    def vjp(self, u: Tensor) -> Tensor:
        columns = [
            self.snapshot.join(
                torch.autograd.grad(
                    self._graph,
                    self._leaves,
                    u[:, k].reshape(self._graph.shape),
                    retain_graph=True,
                    allow_unused=True,
                )
            )
            for k in range(u.shape[1])
        ]
        return torch.stack(columns, 1)

    def _backward_graph(self) -> tuple[list[int], list[Tensor], Tensor]:
        """J' d as a graph of a dummy d: linear in d, so that its own backward is J."""
        if self._pullback is None:
            with torch.inference_mode(False), torch.enable_grad():
                dummy = torch.zeros_like(self._graph, requires_grad=True)
                grads = torch.autograd.grad(
                    self._graph, self._leaves, dummy, create_graph=True, allow_unused=True
                )
            used = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
            self._pullback = (used, [grads[i] for i in used], dummy)
        return self._pullback

    def jvp(self, t: Tensor) -> Tensor:
        used, grads, dummy = self._backward_graph()
        columns = []
        for k in range(t.shape[1]):
            blocks = self.snapshot.split(t[:, k].contiguous())
            try:
                (out,) = torch.autograd.grad(
                    grads, dummy, [blocks[i] for i in used], retain_graph=True
                )
            except RuntimeError as error:
                if "derivative" not in str(error):
                    raise
                raise RuntimeError(
                    f"catapult_ext.{self.snapshot.where}: an operation of the model has no second "
                    f"derivative (try engine='linearize'): {error}"
                ) from error
            columns.append(out.reshape(-1).detach())
        return torch.stack(columns, 1)


class LinearizeFrozen(AutogradFrozen):
    """J' as in autograd; J from torch.func.linearize, which stores the tangent program."""

    engine = "linearize"

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        names = snapshot.names

        def of_params(*params: Tensor) -> Tensor:
            return snapshot.outputs(dict(zip(names, params)))

        leaves = [p.detach() for p in self._leaves]
        try:
            with _frozen_context():
                _, self._tangent = torch.func.linearize(of_params, *leaves)
        except Exception as error:
            raise RuntimeError(
                f"catapult_ext.{snapshot.where}: torch.func.linearize cannot handle this model "
                f"(try engine='autograd'): {error}"
            ) from error

    def jvp(self, t: Tensor) -> Tensor:
        with torch.no_grad():
            columns = [
                self._tangent(*self.snapshot.split(t[:, k].contiguous())).reshape(-1)
                for k in range(t.shape[1])
            ]
        return torch.stack(columns, 1)


def freeze(model: nn.Module, x: Inputs, *, engine: str | None = None, where: str = "NTK") -> Frozen:
    """Freeze ``model`` at its parameters on inputs ``x``.

    Args:
        model: module; see :class:`~catapult_ext.linops.snapshot.Snapshot` for what is refused.
        x: inputs, a tensor, tuple or mapping.
        engine: ``"layers"``, ``"linearize"``, ``"autograd"``, or None to choose.
        where: the public function named in errors.

    Raises:
        ValueError: unknown engine, or an engine that cannot handle the model.
    """
    known = engine is None or engine in ENGINES
    v.require(known, where, f"engine must be None or one of {ENGINES}", repr(engine))
    snapshot = Snapshot(model, x, where)
    if engine == "linearize":
        return LinearizeFrozen(snapshot)
    return AutogradFrozen(snapshot)
