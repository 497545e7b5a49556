"""Residual networks for images: Wide ResNet d-k and the CIFAR ResNet-20, 32, 44, ..."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catapult_ext import _validate as v
from catapult_ext.models.initialise import Parameterisation, check_init, initialise
from catapult_ext.models.layers import NTKConv2d, NTKLinear, activation

Norm = Literal["batch", "none"]
NORMS = get_args(Norm)


class _Factory:
    """Makes the layers of one network in its parameterisation and normalisation."""

    def __init__(self, ntk: bool, sigma_w: float, norm: str, act: str) -> None:
        self.ntk = ntk
        self.sigma_w = sigma_w
        self.normed = norm == "batch"
        self.act = act

    def conv(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Module:
        pad = kernel // 2
        if self.ntk:
            return NTKConv2d(c_in, c_out, kernel, self.sigma_w, padding=pad, stride=stride)
        return nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=pad, bias=False)

    def dense(self, d: int, p: int) -> nn.Module:
        return NTKLinear(d, p, self.sigma_w) if self.ntk else nn.Linear(d, p)

    def norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if self.normed else nn.Identity()

    def activation(self) -> nn.Module:
        return activation(self.act)


class PreActivationBlock(nn.Module):
    """norm - act - conv3x3 - norm - act - conv3x3, added to the input (Wide ResNet).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, make: _Factory, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.act1 = make.norm(c_in), make.activation()
        self.conv1 = make.conv(c_in, c_out, 3, stride)
        self.norm2, self.act2 = make.norm(c_out), make.activation()
        self.conv2 = make.conv(c_out, c_out, 3)
        same = c_in == c_out and stride == 1
        self.shortcut = None if same else make.conv(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H/stride, W/stride)."""
        active = self.act1(self.norm1(x))
        inner = self.conv2(self.act2(self.norm2(self.conv1(active))))
        return inner + (x if self.shortcut is None else self.shortcut(active))


class PostActivationBlock(nn.Module):
    """conv3x3 - norm - act - conv3x3 - norm, added to the input, then act (ResNet).

    The shortcut has no parameters: every stride-th pixel, missing channels zero (option A).
    """

    def __init__(self, make: _Factory, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = make.conv(c_in, c_out, 3, stride), make.norm(c_out)
        self.act1 = make.activation()
        self.conv2, self.norm2 = make.conv(c_out, c_out, 3), make.norm(c_out)
        self.act2 = make.activation()
        self.stride, self.added = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H/stride, W/stride)."""
        inner = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        kept = x[:, :, :: self.stride, :: self.stride]
        before = self.added // 2
        kept = F.pad(kept, (0, 0, 0, 0, before, self.added - before)) if self.added else kept
        return self.act2(inner + kept)


class GlobalMean(nn.Module):
    """Mean over the positions of every channel."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        return x.mean(dim=(2, 3))


def _check(where: str, in_channels: int, out_features: int, norm: str) -> None:
    v.require(in_channels > 0, where, "in_channels must be > 0", in_channels)
    v.require(out_features > 0, where, "out_features must be > 0", out_features)
    if norm not in NORMS:
        v.fail(where, f"norm must be one of {', '.join(NORMS)}", repr(norm))


def wide_resnet(
    depth: int,
    width: int,
    out_features: int,
    *,
    in_channels: int = 3,
    norm: Norm = "batch",
    activation_name: str = "relu",
    parameterisation: Parameterisation = "standard",
    init: str | None = None,
    sigma_w: float = math.sqrt(2.0),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Wide ResNet d-k: three groups of (d - 4)/6 pre-activation blocks, 16k, 32k, 64k channels.

    Args:
        depth: d = 6 n + 4: 10, 16, 22, 28, ...
        width: k >= 1.
        out_features: outputs O; inputs are (N, in_channels, S, S), the model returns (N, O).
        in_channels: channels of the images.
        norm: ``"batch"`` (batch or running statistics, by the module's mode) or ``"none"``.
        activation_name: name in ``models.ACTIVATIONS``, or a factory.
        parameterisation: ``"standard"`` or ``"ntk"``.
        init: see ``models.initialise``; default ``lecun`` in standard parameterisation. With
            ``norm="none"``, ``he`` doubles the variance in every block.
        sigma_w: NTK parameterisation only.
        seed: seed of the initial values.
        dtype: dtype of the parameters; drawn in float32 and converted.

    Raises:
        ValueError: for a depth that is not 6 n + 4, or unknown names.

    Examples:
        >>> net = cx.models.wide_resnet(10, 1, 10)
        >>> net(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    where = "models.wide_resnet"
    ok = depth >= 10 and (depth - 4) % 6 == 0
    v.require(ok, where, "depth must be 6 n + 4 with n >= 1 (10, 16, 22, 28, ...)", depth)
    v.require(width > 0, where, "width must be > 0", width)
    _check(where, in_channels, out_features, norm)
    init = check_init(where, parameterisation, init or _default_init(parameterisation))
    with torch.random.fork_rng(devices=[]):  # torch's layers draw values that are replaced below
        make = _Factory(parameterisation == "ntk", sigma_w, norm, activation_name)
        layers: list[nn.Module] = [make.conv(in_channels, 16, 3)]
        c_in = 16
        for group, channels in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range((depth - 4) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                layers.append(PreActivationBlock(make, c_in, channels, stride))
                c_in = channels
        layers += [make.norm(c_in), make.activation(), GlobalMean()]
        model = nn.Sequential(*layers, make.dense(c_in, out_features))
    return initialise(model.float(), init, seed).to(dtype)


def resnet(
    depth: int,
    out_features: int,
    *,
    width: float = 1,
    in_channels: int = 3,
    norm: Norm = "batch",
    activation_name: str = "relu",
    parameterisation: Parameterisation = "standard",
    init: str | None = None,
    sigma_w: float = math.sqrt(2.0),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """ResNet for CIFAR: three groups of (d - 2)/6 blocks with 16, 32, 64 channels times ``width``.

    Arguments as :func:`wide_resnet`; depth d = 6 n + 2 (20 gives ResNet-20), default init ``he``
    in standard parameterisation, shortcuts without parameters.

    Examples:
        >>> net = cx.models.resnet(8, 10, width=0.25)
        >>> net(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    where = "models.resnet"
    ok = depth >= 8 and (depth - 2) % 6 == 0
    v.require(ok, where, "depth must be 6 n + 2 with n >= 1 (8, 14, 20, 32, ...)", depth)
    v.require(width > 0 and round(16 * width) >= 1, where, "16 * width must be >= 1", width)
    _check(where, in_channels, out_features, norm)
    init = check_init(where, parameterisation, init)
    with torch.random.fork_rng(devices=[]):
        make = _Factory(parameterisation == "ntk", sigma_w, norm, activation_name)
        c_in = round(16 * width)
        layers: list[nn.Module] = [make.conv(in_channels, c_in, 3), make.norm(c_in)]
        layers.append(make.activation())
        for group in range(3):
            channels = round(16 * width) * 2**group
            for block in range((depth - 2) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                layers.append(PostActivationBlock(make, c_in, channels, stride))
                c_in = channels
        model = nn.Sequential(*layers, GlobalMean(), make.dense(c_in, out_features))
    return initialise(model.float(), init, seed).to(dtype)


def _default_init(parameterisation: str) -> str | None:
    return "lecun" if parameterisation == "standard" else None
