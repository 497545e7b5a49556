"""R chains of dense layers as one program: outputs, gradient steps in place, inactive units."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from catapult_ext.models import Abs, Erf, NTKLinear
from catapult_ext.probes.observables import ONE_SIDED

# Activations that act on each element alone and hold no parameters or random numbers.
ELEMENTWISE = (
    *(nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus),
    *(nn.ELU, Erf, Abs),
)
# Of the activations, slopes and weights of replicas that step together.  Those that leave the cache
# of a core take twice as long each; several small ones together save calls.
CACHE_BYTES = {"cpu": 4 << 20}
# The same of one chunk, whose replicas step in turns and are measured together.
CHUNK_BYTES = {"cpu": 64 << 20}
BYTES_ELSEWHERE = 1 << 30  # on a device that needs many replicas to be busy
# More replicas save little more, and several processes could not share them out.
MOST = {"cpu": 8}
# A larger net gains nothing: its products take all the time.
ALONE_BYTES = 128 << 20


@dataclass(frozen=True)
class DenseLayer:
    """``act(scale h W' + bias_scale b)`` with W (units, inputs).

    Attributes:
        weight: name of the parameter W.
        bias: name of the parameter b, or None.
        inputs: fan-in.
        units: number of units.
        scale: factor of the products.
        bias_scale: factor of the bias.
        activation: module applied to each element, or None.
    """

    weight: str
    bias: str | None
    inputs: int
    units: int
    scale: float
    bias_scale: float
    activation: nn.Module | None


def _leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of nested Sequentials in the order of their calls, with their prefixes."""
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for key, child in module._modules.items():  # a module that is called twice, twice
        assert child is not None
        yield from _leaves(f"{name}{key}.", child)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(map(len, hooks)) or len(module._backward_pre_hooks) > 0


def dense_layers(model: nn.Module) -> list[DenseLayer] | None:
    """The layers of a chain that can be stacked, or None for any other model.

    A chain is a Sequential, possibly nested, of ``nn.Linear`` or ``NTKLinear`` with at most one
    activation of ``ELEMENTWISE`` after each, and at most one ``nn.Flatten`` in front.  Every
    parameter is trained, belongs to one layer, and no module has hooks.
    """
    if type(model) is not nn.Sequential or any(map(_has_hooks, model.modules())):
        return None
    found: list[DenseLayer] = []
    open_end = False  # whether the last layer may still take an activation
    seen: set[int] = set()
    for i, (name, module) in enumerate(_leaves("", model)):
        kind = type(module)
        if kind is nn.Flatten and i == 0 and (module.start_dim, module.end_dim) == (1, -1):
            continue
        if kind in ELEMENTWISE and open_end:
            found[-1] = _with_activation(found[-1], module)
            open_end = False
            continue
        layer = _layer(name, module)
        own = {id(p) for p in module.parameters()}
        if layer is None or own & seen or (found and found[-1].units != layer.inputs):
            return None
        seen |= own
        found.append(layer)
        open_end = True
    return found or None


def _layer(name: str, module: nn.Module) -> DenseLayer | None:
    """The dense layer that a module is, where all of it is trained."""
    if type(module) not in (nn.Linear, NTKLinear):
        return None
    if not all(p.requires_grad and type(p) is nn.Parameter for p in module.parameters()):
        return None
    assert isinstance(module, (nn.Linear, NTKLinear))
    units, inputs = module.weight.shape
    bias = None if module.bias is None else f"{name}bias"
    names = (f"{name}weight", bias)
    if isinstance(module, NTKLinear):
        return DenseLayer(*names, inputs, units, math.sqrt(module.scale), module.sigma_b, None)
    return DenseLayer(*names, inputs, units, 1.0, 1.0, None)


def _with_activation(layer: DenseLayer, module: nn.Module) -> DenseLayer:
    return dataclasses.replace(layer, activation=None if type(module) is nn.Identity else module)


def replica_bytes(layers: Sequence[DenseLayer], samples: int, itemsize: int) -> int:
    """Bytes that one replica's step reads and writes: activations, two slopes and the weights."""
    widest = max(layer.units for layer in layers)
    kept = sum(layer.units * (1 if _from_output(layer) else 2) for layer in layers)
    weights = sum(layer.units * (layer.inputs + 1) for layer in layers)
    return itemsize * (samples * (kept + 2 * widest) + weights)


def at_once(layers: Sequence[DenseLayer], samples: int, itemsize: int, device: str) -> int:
    """Replicas of one chunk, a function of sizes alone; 0 for nets that gain nothing."""
    each = replica_bytes(layers, samples, itemsize)
    fit = max(CHUNK_BYTES.get(device, BYTES_ELSEWHERE) // each, 1)
    return min(fit, MOST.get(device, fit)) if each <= ALONE_BYTES else 0


def in_cache(layers: Sequence[DenseLayer], samples: int, itemsize: int, device: str) -> int:
    """Replicas that step together, one at least."""
    room = CACHE_BYTES.get(device, BYTES_ELSEWHERE)
    return max(room // replica_bytes(layers, samples, itemsize), 1)


def _from_output(layer: DenseLayer) -> bool:
    """Whether the slope of the activation follows from its output, which then is made in place."""
    return layer.activation is None or type(layer.activation) in (nn.ReLU, nn.Tanh)


class StackedChain:
    """R replicas of one chain of dense layers, with their weights stacked along dimension 0.

    Products are batched, and a step makes no new tensors: gradients go straight into the weights.
    A replica with non-finite values touches no other.

    Args:
        layers: layers of the chain.
        parameters: by name, each (R, ...); changed in place by :meth:`move`.
        momentum: heavy-ball factor.

    Attributes:
        parameters: by name, each (R, ...).
    """

    def __init__(
        self, layers: Sequence[DenseLayer], parameters: dict[str, Tensor], momentum: float = 0.0
    ) -> None:
        self.layers, self.parameters, self.momentum = list(layers), parameters, momentum
        moved = parameters if momentum else {}
        self._velocity = {name: torch.zeros_like(p) for name, p in moved.items()}
        self._buffers: dict[tuple[str, int, int], Tensor] = {}
        self._held: list[tuple[Tensor, Tensor]] = []  # pre-activations and outputs by layer
        self._x: Tensor = next(iter(parameters.values()))  # inputs of the last forward

    @classmethod
    def copies(
        cls, layers: Sequence[DenseLayer], model: nn.Module, count: int, momentum: float = 0.0
    ) -> StackedChain:
        """``count`` replicas that start at the parameters of ``model``."""
        own = dict(model.named_parameters())
        names = [n for layer in layers for n in (layer.weight, layer.bias) if n is not None]
        stacked = {n: own[n].detach().expand(count, *own[n].shape).clone() for n in names}
        return cls(layers, stacked, momentum)

    @classmethod
    def of_states(
        cls, layers: Sequence[DenseLayer], states: Sequence[dict[str, Tensor]], momentum: float
    ) -> StackedChain:
        """A replica for each of ``states``, tensors by name."""
        names = [n for layer in layers for n in (layer.weight, layer.bias) if n is not None]
        return cls(layers, {n: torch.stack([s[n] for s in states]) for n in names}, momentum)

    def pieces(self, size: int) -> list[StackedChain]:
        """The same weights as chains of ``size`` replicas that take turns in one working memory.

        What a piece does to weights and velocities, it does to those of this chain.
        """
        made: list[StackedChain] = []
        for first in range(0, len(self), size):
            some = slice(first, first + size)
            held = {n: p[some] for n, p in self.parameters.items()}
            made.append(StackedChain(self.layers, held))
            made[-1].momentum = self.momentum
            made[-1]._velocity = {n: p[some] for n, p in self._velocity.items()}
            made[-1]._buffers = made[0]._buffers
        return made

    def __len__(self) -> int:
        return len(self.parameters[self.layers[0].weight])

    @torch.no_grad()
    def load(self, model: nn.Module, replica: int) -> None:
        """Write one replica's parameters into ``model``."""
        own = dict(model.named_parameters())
        for name, stacked in self.parameters.items():
            own[name].copy_(stacked[replica])

    def keep(self, replicas: Tensor) -> None:
        """Leave out all replicas but these."""
        self.parameters = {n: p[replicas] for n, p in self.parameters.items()}
        self._velocity = {n: p[replicas] for n, p in self._velocity.items()}
        held = []
        for z, h in self._held:
            kept = z[replicas]
            held.append((kept, kept if h is z else h[replicas]))
        self._held = held

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Outputs (R, N, O) of inputs (N, D), kept for :meth:`move`; valid until the next call."""
        self._x, self._held = x, []
        h = x.expand(len(self), *x.shape)
        for i, layer in enumerate(self.layers):
            z = self._product(layer, h, self._buffer(f"z{i}", len(x), layer.units))
            h = z
            if layer.activation is not None:
                h = z if _from_output(layer) else self._buffer(f"h{i}", len(x), layer.units)
                _activate(layer.activation, z, h)
            self._held.append((z, h))
        return h

    @torch.no_grad()
    def look(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs (R, N, O) of inputs (N, D), and :meth:`inactivity` there; nothing is kept."""
        h, held = x.expand(len(self), *x.shape), []
        for layer in self.layers:
            z = self._product(layer, h, h.new_empty(len(self), len(x), layer.units))
            h = z if layer.activation is None else layer.activation(z)
            held.append(z)
        return h, self._inactivity(held)

    @torch.no_grad()
    def inactivity(self) -> Tensor | None:
        """Shares of the last :meth:`forward`: pre-activations <= 0 and units never above 0.

        Returns:
            (2, L, R) for the L one-sided activations; None without any.
        """
        return self._inactivity([z for z, _ in self._held])

    def _inactivity(self, held: list[Tensor]) -> Tensor | None:
        found = []
        for layer, z in zip(self.layers, held, strict=True):
            if isinstance(layer.activation, ONE_SIDED):  # z of a ReLU may be its output
                times = (z <= 0).sum(dim=1, dtype=torch.int32)
                dead = (times == z.shape[1]).double().mean(dim=1)
                found.append(torch.stack([times.double().mean(dim=1) / z.shape[1], dead]))
        return torch.stack(found, dim=1) if found else None

    @torch.no_grad()
    def move(self, slope: Tensor, l2: Tensor | None = None) -> None:
        """One step of gradient descent from the last :meth:`forward`.

        Args:
            slope: (R, N, O) derivative of each loss with respect to its outputs, times the
                learning rate of the replica.
            l2: (R, 1, 1) weight of the L2 penalty times the learning rate; None for none.
        """
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            z, h = self._held[i]
            slope = _slope(layer, slope, z, h)
            below = None
            if i:  # before the weights move
                below = self._buffer(f"g{i % 2}", len(self._x), layer.inputs)
                weight = self.parameters[layer.weight]
                torch.baddbmm(below, slope, weight, beta=0, alpha=layer.scale, out=below)
            inputs = self._held[i - 1][1] if i else self._x.expand(len(self), *self._x.shape)
            self._add(layer.weight, slope.mT, inputs, layer.scale, l2)
            if layer.bias is not None:
                self._add_bias(layer.bias, slope.sum(dim=1) * layer.bias_scale, l2)
            slope = slope if below is None else below
        self._held = []

    def _product(self, layer: DenseLayer, h: Tensor, out: Tensor) -> Tensor:
        weight = self.parameters[layer.weight]
        if layer.bias is None:
            return torch.baddbmm(out, h, weight.mT, beta=0, alpha=layer.scale, out=out)
        bias = self.parameters[layer.bias].unsqueeze(1)
        return torch.baddbmm(bias, h, weight.mT, beta=layer.bias_scale, alpha=layer.scale, out=out)

    def _add(self, name: str, left: Tensor, right: Tensor, scale: float, l2: Tensor | None) -> None:
        """Subtract ``scale left @ right``, the gradient times the rate, from a weight."""
        weight = self.parameters[name]
        if not self.momentum:
            if l2 is not None:
                weight.mul_(1 - l2)
            weight.baddbmm_(left, right, alpha=-scale)
            return
        velocity = self._velocity[name]
        velocity.baddbmm_(left, right, beta=self.momentum, alpha=scale)
        if l2 is not None:
            velocity.add_(weight * l2)
        weight.sub_(velocity)

    def _add_bias(self, name: str, change: Tensor, l2: Tensor | None) -> None:
        bias = self.parameters[name]
        change = change if l2 is None else change + bias * l2[:, 0]
        if self.momentum:
            change = self._velocity[name].mul_(self.momentum).add_(change)
        bias.sub_(change)

    def _buffer(self, name: str, samples: int, units: int) -> Tensor:
        """(R, samples, units) memory that is used again at every step."""
        key = (name, samples, units)
        held = self._buffers.get(key)
        if held is None:
            like = self.parameters[self.layers[0].weight]
            held = self._buffers[key] = like.new_empty(len(self), samples, units)
        return held[: len(self)]


def _activate(activation: nn.Module, z: Tensor, out: Tensor) -> None:
    if type(activation) is nn.ReLU:
        torch.relu_(out)
    elif type(activation) is nn.Tanh:
        torch.tanh(z, out=out)
    else:
        out.copy_(activation(z))


def _slope(layer: DenseLayer, above: Tensor, z: Tensor, h: Tensor) -> Tensor:
    """``above`` times the slope of the activation, in the memory of ``above`` where possible."""
    aten = torch.ops.aten
    if layer.activation is None:
        return above
    if type(layer.activation) is nn.ReLU:
        return aten.threshold_backward.grad_input(above, h, 0, grad_input=above)
    if type(layer.activation) is nn.Tanh:
        return aten.tanh_backward.grad_input(above, h, grad_input=above)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(layer.activation(leaf), leaf, above)
    return slope
