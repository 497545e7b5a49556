"""Growth rates of heavy ball on a curvature that is drawn again at every step."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from catapult_ext import _native, _validate
from catapult_ext.ops._registry import register

_WHERE = "toy_lyapunov"
Noise = Literal["normal", "uniform", "two-point"]
NOISES = get_args(Noise)


def toy_lyapunov(
    mean: Tensor,
    deviation: Tensor,
    beta: Tensor,
    steps: int,
    *,
    paths: int = 64,
    burn_in: int = 0,
    noise: Noise = "normal",
    seed: int = 0,
    first_path: int = 0,
) -> Tensor:
    """Growth of heavy ball along sampled paths of a quadratic with random curvature h_t.

    With x_(-1) = x_0 and z_t independent, of mean 0 and variance 1, a path follows

        x_(t+1) = (1 + beta - eta h_t) x_t - beta x_(t-1),    eta h_t = mean + deviation z_t,

    and the result is the growth of log (x_t^2 + x_(t-1)^2)^(1/2) from step ``burn_in`` to step
    ``steps``. Divided by ``steps - burn_in`` it estimates the top Lyapunov exponent of the product
    of random matrices (Furstenberg and Kesten 1960), without bias once the direction of
    (x_t, x_(t-1)) has forgotten its start.

    The draw z is a function of ``seed``, ``noise``, path number and step number only
    (Threefry-2x64-20, Salmon et al. 2011): threads, chunks and device do not change it, and all R
    cases see the same draws, so that differences between them are smooth.

    Args:
        mean: (R,) float64, learning rate times mean curvature.
        deviation: (R,) float64, learning rate times standard deviation of the curvature.
        beta: (R,) float64, momentum.
        steps: number of steps, >= 0.
        paths: P, number of paths.
        burn_in: steps before the growth is measured, at most ``steps``.
        noise: "normal", "uniform" or "two-point" (+1 and -1).
        seed: seed of the draws.
        first_path: number of the first path; paths 0 to 9 and 10 to 19 are those of 0 to 19.

    Returns:
        (R, P) float64. -inf if a path reaches the origin; NaN for a case whose parameters are not
        finite. States are scaled by powers of two every 8 steps: |eta h| may reach 1e30, and a
        positive beta below 1e-30 may be treated as 0.

    Raises:
        TypeError: not float64 tensors, or not ints.
        ValueError: wrong shapes, different devices, an input that requires grad, an unknown noise,
            or steps, paths, burn_in or first_path out of range.

    Cost:
        5 R P steps flops in registers, and about 60 operations per draw; the number of draws is P
        steps.

    Examples:
        >>> mean, deviation, beta = (torch.tensor([t]).double() for t in (0.5, 0.1, 0.0))
        >>> cx.ops.toy_lyapunov(mean, deviation, beta, 100, paths=8).shape[0]
        1
    """
    given = {"mean": mean, "deviation": deviation, "beta": beta}
    for name, t in given.items():
        shape = ("R",) if name == "mean" else (mean.shape[0],)
        _validate.tensor(t, _WHERE, name, shape, (torch.float64,))
    _validate.same_kind(_WHERE, given)
    _validate.no_grad_needed(_WHERE, given)
    sizes = {"steps": steps, "paths": paths, "burn_in": burn_in, "first_path": first_path}
    _validate.integers(_WHERE, seed=seed, **sizes)
    for name, value in sizes.items():
        _validate.require(value >= 0, _WHERE, f"{name} must be >= 0", value)
    _validate.require(burn_in <= steps, _WHERE, "burn_in must be at most steps", burn_in)
    _validate.require(paths < 1 << 31, _WHERE, "paths must be below 2^31", paths)
    last = first_path + paths
    _validate.require(last < 1 << 63, _WHERE, "first_path + paths must fit 64 bits", last)
    _validate.require(noise in NOISES, _WHERE, f"noise must be one of {NOISES}", repr(noise))
    kind = NOISES.index(noise)
    return torch.ops.catapult.toy_lyapunov(
        mean, deviation, beta, steps, paths, burn_in, kind, seed, first_path
    )


def _fake(
    mean: Tensor,
    deviation: Tensor,
    beta: Tensor,
    steps: int,
    paths: int,
    burn_in: int,
    noise: int,
    seed: int,
    first_path: int,
) -> Tensor:
    return mean.new_empty(mean.shape[0], paths)


def _impl(
    mean: Tensor,
    deviation: Tensor,
    beta: Tensor,
    steps: int,
    paths: int,
    burn_in: int,
    noise: int,
    seed: int,
    first_path: int,
) -> Tensor:
    growth = mean.new_empty(mean.shape[0], paths)
    _native.call(
        "toy_lyapunov",
        mean.device,
        mean.contiguous(),
        deviation.contiguous(),
        beta.contiguous(),
        growth,
        steps,
        burn_in,
        first_path,
        seed,
        noise,
    )
    return growth


register(
    "toy_lyapunov(Tensor mean, Tensor deviation, Tensor beta, int steps, int paths, int burn_in, "
    "int noise, int seed, int first_path) -> Tensor",
    _impl,
    _fake,
)
