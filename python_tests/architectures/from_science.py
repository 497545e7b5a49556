"""Networks of `torchdiffeq`, `e3nn` and `monai`: differential equations, symmetries, medicine."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from architectures.catalogue import Case, add, images, installed
from torch import Tensor, nn


class _Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(z)))


class _NeuralODE(nn.Module):
    """An ODE block solved with fixed steps; ``adjoint`` recomputes it in the backward pass."""

    def __init__(self, adjoint: bool) -> None:
        super().__init__()
        self.field, self.out, self.adjoint = _Field(), nn.Linear(3, 2), adjoint

    def forward(self, x: Tensor) -> Tensor:
        import torchdiffeq

        solve = torchdiffeq.odeint_adjoint if self.adjoint else torchdiffeq.odeint
        times = torch.linspace(0, 1, 3, dtype=x.dtype)
        return self.out(solve(self.field, x, times, method="rk4")[-1])


def _ode(adjoint: bool) -> Case:
    torch.manual_seed(0)
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    # The adjoint method has no second derivative: its backward pass solves another equation.
    return Case(_NeuralODE(adjoint).eval(), x, lambda m, x: m(x), hessian=not adjoint)


class _Equivariant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from e3nn import o3

        self.first = o3.FullyConnectedTensorProduct("2x0e + 1x1o", "1x0e + 1x1o", "3x0e + 1x1o")
        self.second = o3.Linear("3x0e + 1x1o", "2x0e")

    def forward(self, x: Tensor) -> Tensor:
        features, directions = x[:, :5], x[:, 5:]
        return self.second(torch.tanh(self.first(features, directions)))


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from e3nn import o3
        from e3nn.nn import Gate

        self.gate = Gate("2x0e", [torch.tanh], "1x0e", [torch.sigmoid], "1x1o")
        self.first = o3.Linear("2x0e + 1x1o", self.gate.irreps_in)
        self.second = o3.Linear(self.gate.irreps_out, "2x0e")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.gate(self.first(x)))


def _e3nn(kind: type[nn.Module], width: int) -> Case:
    torch.manual_seed(0)
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    return Case(kind().eval(), x, lambda m, x: m(x))


# class: options, image size
MONAI: dict[str, tuple[dict[str, Any], int]] = {
    "UNet": (dict(spatial_dims=2, in_channels=3, out_channels=2, channels=(4, 6), strides=(2,)), 8),
    "BasicUNet": (dict(spatial_dims=2, in_channels=3, out_channels=2, features=(4,) * 6), 32),
    "AttentionUnet": (
        dict(spatial_dims=2, in_channels=3, out_channels=2, channels=(4, 6), strides=(2,)), 8,
    ),
    "DynUNet": (
        dict(
            spatial_dims=2, in_channels=3, out_channels=2, kernel_size=[3] * 3, strides=[1, 2, 2],
            upsample_kernel_size=[2, 2], filters=[4, 6, 8],
        ), 8,
    ),
    "SegResNet": (
        dict(spatial_dims=2, init_filters=4, in_channels=3, out_channels=2, num_groups=2,
             norm=("GROUP", {"num_groups": 2}), blocks_down=(1, 1), blocks_up=(1,)), 8,
    ),
    "HighResNet": (dict(spatial_dims=2, in_channels=3, out_channels=2, layer_params=(
        {"name": "conv_0", "n_features": 4, "kernel_size": 3},
        {"name": "res_1", "n_features": 4, "kernels": (3,), "repeat": 1},
        {"name": "conv_1", "n_features": 4, "kernel_size": 1},
        {"name": "conv_2", "kernel_size": 1},
    )), 8),
    "UNETR": (
        dict(in_channels=3, out_channels=2, img_size=16, feature_size=4, hidden_size=12,
             mlp_dim=12, num_heads=2, spatial_dims=2), 16,
    ),
    "ViT": (
        dict(in_channels=3, img_size=(8, 8), patch_size=(4, 4), hidden_size=12, mlp_dim=12,
             num_layers=2, num_heads=2, classification=True, num_classes=3, spatial_dims=2), 8,
    ),
}  # fmt: skip


def _pixels(model: nn.Module, x: Tensor) -> Tensor:
    """The mean over each half of every output map, so that N*O stays small."""
    out = model(x)
    out = out[0] if isinstance(out, (tuple, list)) else out
    return out.flatten(2).mean(-1) if out.dim() > 2 else out


def _monai(name: str) -> Case:
    from monai.networks import nets

    options, size = MONAI[name]
    torch.manual_seed(0)
    return Case(getattr(nets, name)(**options).eval(), images(size), _pixels)


if installed("torchdiffeq"):
    add("torchdiffeq", "odeint", partial(_ode, False))
    add("torchdiffeq", "odeint_adjoint", partial(_ode, True), default=True)
if installed("e3nn"):
    add("e3nn", "tensor_product", partial(_e3nn, _Equivariant, 9), default=True)
    add("e3nn", "gate", partial(_e3nn, _Gated, 5))
if installed("monai"):
    for each in MONAI:
        add("monai", each, partial(_monai, each), default=each in ("UNet", "DynUNet"))
