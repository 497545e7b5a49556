"""Layers in NTK parameterisation, and activations torch has no module for."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catapult_ext import _validate as v


def _check_sigmas(where: str, sigma_w: float, sigma_b: float, bias: bool | None) -> bool:
    v.require(
        math.isfinite(sigma_w) and sigma_w > 0, where, "sigma_w must be finite and > 0", sigma_w
    )
    v.require(
        math.isfinite(sigma_b) and sigma_b >= 0, where, "sigma_b must be finite and >= 0", sigma_b
    )
    wanted = sigma_b > 0 if bias is None else bias
    if wanted and sigma_b == 0:
        v.fail(where, "a bias needs sigma_b > 0", sigma_b)
    if sigma_b > 0 and not wanted:
        v.fail(where, "sigma_b > 0 needs bias=True", bias)
    return wanted


def draw_(p: Tensor, method: str, *args: float, generator: torch.Generator | None = None) -> None:
    """``p.method(*args)`` on the generator's device: the same values on every device."""
    if generator is None or generator.device == p.device:
        getattr(p, method)(*args, generator=generator)
        return
    values = torch.empty(p.shape, dtype=p.dtype, device=generator.device)
    p.copy_(getattr(values, method)(*args, generator=generator))


class NTKLinear(nn.Module):
    """Dense layer ``y = sigma_w / sqrt(in) W x + sigma_b b`` with W, b ~ N(0, 1).

    Args:
        in_features: fan-in d.
        out_features: number of units p.
        sigma_w: standard deviation of the effective weights times sqrt(d).
        sigma_b: standard deviation of the effective bias.
        bias: whether b exists; by default exactly when ``sigma_b > 0``.
        generator: source of the initial values (torch's global one if None).

    Attributes ``scale`` (sigma_w^2 / d) and ``bias_scale`` (sigma_b^2, 0 without bias) are the
    factors that a layer contributes to the empirical NTK.

    Examples:
        >>> cx.models.NTKLinear(3, 2)(torch.randn(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sigma_w: float = 1.0,
        sigma_b: float = 0.0,
        bias: bool | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        where = "models.NTKLinear"
        v.require(in_features > 0, where, "in_features must be > 0", in_features)
        v.require(out_features > 0, where, "out_features must be > 0", out_features)
        has_bias = _check_sigmas(where, sigma_w, sigma_b, bias)
        self.in_features, self.out_features = in_features, out_features
        self.sigma_w, self.sigma_b = float(sigma_w), float(sigma_b)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype)) if has_bias else None
        self.reset_parameters(generator)
        if device is not None:
            self.to(device)

    @property
    def scale(self) -> float:
        """Factor of the weight term of the NTK: sigma_w^2 / fan-in."""
        return self.sigma_w**2 / self.in_features

    @property
    def bias_scale(self) -> float:
        """Factor of the bias term of the NTK: sigma_b^2, or 0 without a bias."""
        return self.sigma_b**2 if self.bias is not None else 0.0

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every parameter from N(0, 1)."""
        for p in self.parameters():
            draw_(p, "normal_", generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = F.linear(x * math.sqrt(self.scale), self.weight)
        return y if self.bias is None else y + self.sigma_b * self.bias

    def extra_repr(self) -> str:
        """Settings shown by ``repr``."""
        return (
            f"{self.in_features}, {self.out_features}, sigma_w={self.sigma_w:g}, "
            f"sigma_b={self.sigma_b:g}, bias={self.bias is not None}"
        )


class NTKConv2d(nn.Module):
    """Convolution ``y = sigma_w / sqrt(in k^2) W * x + sigma_b b`` with W, b ~ N(0, 1).

    Arguments as for :class:`NTKLinear`; ``padding`` zeros on every side, one ``stride`` for both.

    Examples:
        >>> cx.models.NTKConv2d(3, 8, 3, padding=1)(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 8, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        sigma_w: float = 1.0,
        sigma_b: float = 0.0,
        bias: bool | None = None,
        *,
        padding: int = 0,
        stride: int = 1,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where = "models.NTKConv2d"
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            v.require(value > 0, where, f"{name} must be > 0", value)
        v.require(kernel_size > 0, where, "kernel_size must be > 0", kernel_size)
        v.require(stride > 0, where, "stride must be > 0", stride)
        has_bias = _check_sigmas(where, sigma_w, sigma_b, bias)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.padding, self.stride = kernel_size, padding, stride
        self.sigma_w, self.sigma_b = float(sigma_w), float(sigma_b)
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, dtype=dtype)) if has_bias else None
        self.reset_parameters(generator)

    @property
    def fan_in(self) -> int:
        """Inputs of one output value: in_channels * k^2."""
        return self.in_channels * self.kernel_size**2

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every parameter from N(0, 1)."""
        for p in self.parameters():
            draw_(p, "normal_", generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        factor = self.sigma_w / math.sqrt(self.fan_in)
        y = F.conv2d(x * factor, self.weight, padding=self.padding, stride=self.stride)
        return y if self.bias is None else y + (self.sigma_b * self.bias).view(-1, 1, 1)

    def extra_repr(self) -> str:
        """Settings shown by ``repr``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, "
            f"sigma_w={self.sigma_w:g}, sigma_b={self.sigma_b:g}, bias={self.bias is not None}"
        )


class Erf(nn.Module):
    """Element-wise error function.

    Examples:
        >>> cx.models.Erf()(torch.zeros(2))
        tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return torch.erf(x)


class Abs(nn.Module):
    """Element-wise absolute value.

    Examples:
        >>> cx.models.Abs()(torch.tensor([-2.0, 3.0]))
        tensor([2., 3.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return torch.abs(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.5),
    "abs": Abs,
    "tanh": nn.Tanh,
    "erf": Erf,
    "gelu": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


def activation(name: str | Callable[[], nn.Module]) -> nn.Module:
    """A new activation module: by its name in ``ACTIVATIONS``, or from a factory such as nn.Mish.

    Raises:
        TypeError: a factory that does not return a module.
        ValueError: for a name that is not listed.

    Examples:
        >>> cx.models.activation("relu")
        ReLU()
    """
    if callable(name):
        made = name()
        if not isinstance(made, nn.Module):
            v.fail(
                "models.activation",
                "a factory must return a module",
                type(made).__name__,
                TypeError,
            )
        return made
    if name not in ACTIVATIONS:
        shown = f"{name!r}{v.nearest(name, ACTIVATIONS)}"
        v.fail("models.activation", f"name must be one of {', '.join(ACTIVATIONS)}", shown)
    return ACTIVATIONS[name]()
