"""NTK, GGN and Hessian of R models of one architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from catapult_ext._autocast import no_autocast
from catapult_ext.linops.engines.autograd_hessian import Mode
from catapult_ext.linops.engines.choose import Options
from catapult_ext.linops.ggn import GGN
from catapult_ext.linops.hessian import Hessian
from catapult_ext.linops.model.fixed_model import Probe
from catapult_ext.linops.model.inputs import finite
from catapult_ext.linops.model.several import serve_several
from catapult_ext.linops.ntk import NTK
from catapult_ext.linops.stacked.base import StackedOperator, StackedProducts
from catapult_ext.linops.stacked.chain import StackedChain
from catapult_ext.linops.stacked.chain_hessian import StackedChainHVP
from catapult_ext.linops.stacked.choose import NotStacked, Stack, stacked
from catapult_ext.linops.stacked.jacobian_products import GGNProducts, NTKProducts
from catapult_ext.linops.stacked.linearization import StackedLinearization
from catapult_ext.linops.stacked.loop import one_by_one
from catapult_ext.linops.stacked.loss import StackedLoss, adds_up
from catapult_ext.linops.stacked.replicas import Replicas, per_replica
from catapult_ext.linops.stacked.vectorized import StackedAutograd, StackedAutogradHVP
from catapult_ext.losses import Loss, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack

Models = Sequence[nn.Module] | tuple[Any, Any, nn.Module]


class StackedNTK(StackedOperator):
    """The kernels J J' of R models, (R, N*O, N*O); ``cx.NTK(models, x)`` makes it.

    Args:
        models: a list of modules that are equal in all but the values of their tensors, or
            ``(*torch.func.stack_module_state(models), module)``.
        x: inputs as :class:`~catapult_ext.NTK` takes them, for all models; or a list of R of them,
            of one shape, one for each model.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Raises:
        TypeError, ValueError: what :class:`~catapult_ext.NTK` refuses, and models or batches that
            differ: see :class:`~catapult_ext.linops.stacked.replicas.Replicas`.

    Examples:
        >>> nets = [nn.Linear(3, 2) for _ in range(4)]
        >>> K = cx.NTK(nets, torch.randn(5, 3))
        >>> K.shape, K.dense().shape
        ((4, 10, 10), torch.Size([4, 10, 10]))
    """

    name = "NTK"

    @no_autocast()
    def __init__(self, models: Models, x: Any, **options: Unpack[Options]) -> None:
        replicas = Replicas(models, self.name)
        inputs = per_replica(x, len(replicas), self.name, "x")
        shared = not isinstance(x, list)
        try:
            stack = stacked(replicas, inputs, shared, self.name, "kernel", options)
            self._use(stack.of(NTKProducts(stack.linearization)))
        except NotStacked as why:
            self._use(one_by_one(lambda r: NTK(replicas[r], inputs[r], **options), replicas, why))


class StackedGGN(StackedOperator):
    """The Gauss-Newton matrices J' H_L J of R models, (R, P, P); ``cx.GGN(models, ...)`` makes it.

    H_L is that of each model's own loss, normaliser included, as in :class:`~catapult_ext.GGN`.

    Args:
        models: as for :class:`StackedNTK`.
        loss: see :func:`catapult_ext.losses.resolve`.
        data: ``(x, y)`` or another batch with labels for all models; or a list of R of them, of
            one shape, one for each model.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Raises:
        TypeError, ValueError: what :class:`~catapult_ext.GGN` refuses, and models or batches that
            differ: see :class:`~catapult_ext.linops.stacked.replicas.Replicas`.

    Examples:
        >>> nets = [nn.Linear(3, 2) for _ in range(4)]
        >>> G = cx.GGN(nets, "mse", (torch.randn(8, 3), torch.randn(8, 2)))
        >>> G.shape, cx.eigsh(G).eigenvalues.shape
        ((4, 8, 8), torch.Size([4, 1]))
    """

    name = "GGN"

    @no_autocast()
    def __init__(self, models: Models, loss: object, data: Any, **options: Unpack[Options]) -> None:
        replicas = Replicas(models, self.name)
        batches = per_replica(data, len(replicas), self.name, "data")
        known = resolve(loss)
        try:
            stack, losses = _with_loss(replicas, known, batches, data, "parameter", options)
            self._use(stack.of(GGNProducts(stack.linearization, losses)))
        except NotStacked as why:
            self._use(
                one_by_one(lambda r: GGN(replicas[r], loss, batches[r], **options), replicas, why)
            )


class StackedHessian(StackedOperator):
    """The Hessians of the losses of R models, (R, P, P); ``cx.Hessian(models, ...)`` makes it.

    Args:
        models: as for :class:`StackedNTK`.
        loss: as for :class:`~catapult_ext.Hessian`.
        data: as for :class:`StackedGGN`; with ``loss=None`` the inputs alone.
        hvp: as for :class:`~catapult_ext.Hessian`.
        **options: see :class:`~catapult_ext.linops.engines.choose.Options`.

    Raises:
        TypeError, ValueError: what :class:`~catapult_ext.Hessian` refuses, and models or batches
            that differ: see :class:`~catapult_ext.linops.stacked.replicas.Replicas`.

    Examples:
        >>> nets = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(4)]
        >>> H = cx.Hessian(nets, "mse", (torch.randn(8, 3), torch.randn(8, 1)))
        >>> H.shape, (H @ torch.ones(4, 21)).shape
        ((4, 21, 21), torch.Size([4, 21]))
    """

    name = "Hessian"

    @no_autocast()
    def __init__(
        self,
        models: Models,
        loss: object,
        data: Any,
        *,
        hvp: Mode | None = None,
        **options: Unpack[Options],
    ) -> None:
        replicas = Replicas(models, self.name)
        batches = per_replica(data, len(replicas), self.name, "data")

        def make(r: int) -> Hessian:
            return Hessian(replicas[r], loss, batches[r], hvp=hvp, **options)

        known = resolve(loss)
        try:
            if hvp is not None:
                raise NotStacked("the option hvp")
            stack, losses = _with_loss(replicas, known, batches, data, "hessian", options)
            self._use(stack.of(_hessian(stack.linearization, losses)))
        except NotStacked as why:
            self._use(one_by_one(make, replicas, why))


def _hessian(linearization: StackedLinearization, loss: StackedLoss) -> StackedProducts:
    if isinstance(linearization, StackedChain):
        return StackedChainHVP(linearization, loss)
    assert isinstance(linearization, StackedAutograd)
    return StackedAutogradHVP(linearization, loss)


def _with_loss(
    replicas: Replicas,
    loss: Loss,
    batches: Sequence[Any],
    data: Any,
    probe: Probe,
    options: Options,
) -> tuple[Stack, StackedLoss]:
    """The models at once, and the losses at their outputs."""
    shared = not isinstance(data, list)
    where = "Hessian" if probe == "hessian" else "GGN"
    if not all(type(batch) is tuple and len(batch) == 2 for batch in batches):
        raise NotStacked("batches that are no pairs of tensors")
    stack = stacked(replicas, [x for x, _ in batches], shared, where, probe, options)
    f, shape = stack.linearization.outputs, stack.linearization.output_shape
    ys = [y for _, y in batches]
    if not adds_up(loss, ys[0], shape):
        raise NotStacked(f"the loss {loss.name}")
    if not shared and not all(map(finite, ys)):
        raise NotStacked("labels that are not finite")
    held = [y.detach().clone() for y in (ys[:1] if shared else ys)]  # the user may change them
    return stack, StackedLoss(loss, f.reshape(len(f), *shape), held[0] if shared else held)


serve_several(NTK, StackedNTK)
serve_several(GGN, StackedGGN)
serve_several(Hessian, StackedHessian)
