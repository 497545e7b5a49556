"""Models quadratic in their parameters: neural, pure and with bias, second-order regression.

For this model gradient descent closes on the residual z and the Jacobian J: with d = J'z and
G = Q(d, .), the change of the Jacobian along d, one step on |z|^2 / (2 normaliser) is exactly

    z' = z - eta J d + (eta^2 / 2) G d,    J' = J - eta G,
    K' = K - eta (G J' + J G') + eta^2 G G'    for the kernel K = J J'     (normaliser 1)

(Zhu et al., arXiv 2205.11787; Agarwala et al., arXiv 2210.04860). The toy model is one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from catapult_ext import _validate

# d (P,) -> (N, P): row i is H_i d, with H_i the constant Hessian of output i.
Curvature = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class QuadraticRun:
    """One run of a :class:`QuadraticModel`.

    Attributes:
        loss: (steps + 1,), |z|^2 / (2 normaliser).
        eigenvalues: (steps // curvature_every + 1, k) top eigenvalues of J J' / normaliser,
            descending; (0, k) if none were requested. eta_crit = 2 / eigenvalues[0, 0].
        projected_loss: (steps + 1, k), the loss of the residual's components along the top k
            eigenvectors of the kernel at the start.
        diverged_at: first step whose loss is not finite or above 1e12 times the larger of the first
            and 1; -1 for none. Later losses repeat the last accepted loss.
        model: the model at the end.

    Examples:
        >>> J, Q = torch.eye(2), torch.zeros(2, 2, 2)  # linear regression
        >>> model = cx.toy.second_order_regression(torch.ones(2), J, Q)
        >>> model.run(0.5, steps=10).diverged_at
        -1
    """

    loss: Tensor
    eigenvalues: Tensor
    projected_loss: Tensor
    diverged_at: int
    model: QuadraticModel


@dataclass(frozen=True)
class QuadraticModel:
    """A model quadratic in its P parameters on N samples, at one point of its parameter space.

    Attributes:
        z: (N,) residuals f - y.
        J: (N, P) Jacobian.
        curvature: the constant Hessians as a function d (P,) -> (N, P).
        normaliser: the loss is |z|^2 / (2 normaliser); 1 for a sum, N for a mean.

    Examples:
        >>> J, Q = torch.eye(2), torch.zeros(2, 2, 2)  # linear regression
        >>> model = cx.toy.second_order_regression(torch.ones(2), J, Q)
        >>> run = model.run(0.5, steps=10)
        >>> bool(run.loss[-1] < run.loss[0])
        True
    """

    z: Tensor
    J: Tensor
    curvature: Curvature
    normaliser: float = 1.0

    def loss(self) -> Tensor:
        """|z|^2 / (2 normaliser)."""
        return self.z.square().sum() / (2 * self.normaliser)

    def kernel(self) -> Tensor:
        """(N, N) tangent kernel J J' / normaliser; eta_crit is 2 over its top eigenvalue."""
        return self.J @ self.J.mT / self.normaliser

    def step(self, eta: float) -> QuadraticModel:
        """The model after one exact step of gradient descent."""
        rate = eta / self.normaliser
        d = self.z @ self.J
        G = self.curvature(d)
        z = self.z - rate * (self.J @ d) + rate**2 / 2 * (G @ d)
        return QuadraticModel(z, self.J - rate * G, self.curvature, self.normaliser)

    def kernel_step(self, K: Tensor, eta: float) -> Tensor:
        """The kernel after the next step, from K = ``self.kernel()`` by its own recursion."""
        rate = eta / self.normaliser
        G = self.curvature(self.z @ self.J)
        cross = G @ self.J.mT
        return K - (rate * (cross + cross.mT) - rate**2 * G @ G.mT) / self.normaliser

    def run(self, eta: float, steps: int, *, curvature_every: int = 1, k: int = 2) -> QuadraticRun:
        """Gradient descent for ``steps`` steps.

        Args:
            eta: learning rate, positive.
            steps: >= 0.
            curvature_every: eigenvalues at steps 0, s, 2s, ...; 0 for none.
            k: how many top directions to follow (at most N).

        Raises:
            ValueError: eta not positive, or steps, curvature_every or k out of range.
        """
        where = "toy.QuadraticModel.run"
        _validate.require(eta > 0, where, "eta must be positive", eta)
        _validate.require(steps >= 0, where, "steps must be >= 0", steps)
        _validate.require(
            curvature_every >= 0, where, "curvature_every must be >= 0", curvature_every
        )
        _validate.require(1 <= k <= len(self.z), where, f"k must be in [1, {len(self.z)}]", k)
        top = torch.linalg.eigh(self.kernel()).eigenvectors[:, -k:].flip(1)
        model, diverged_at = self, -1
        losses, parts, eigenvalues = [], [], []
        limit = 1e12 * max(float(self.loss()), 1.0)
        for t in range(steps + 1):
            losses.append(model.loss())
            parts.append((model.z @ top).square() / (2 * model.normaliser))
            if curvature_every and t % curvature_every == 0:
                eigenvalues.append(torch.linalg.eigvalsh(model.kernel())[-k:].flip(0))
            if t == steps or diverged_at >= 0:
                continue
            following = model.step(eta)
            if not float(following.loss()) <= limit:
                diverged_at = t + 1
            else:
                model = following
        return QuadraticRun(
            loss=torch.stack(losses),
            eigenvalues=torch.stack(eigenvalues) if eigenvalues else self.z.new_empty(0, k),
            projected_loss=torch.stack(parts),
            diverged_at=diverged_at,
            model=model,
        )


def second_order_regression(
    z: Tensor, J: Tensor, Q: Tensor, normaliser: float = 1.0
) -> QuadraticModel:
    """Residual, Jacobian and constant Hessians given outright (Agarwala et al., arXiv 2210.04860).

    Args:
        z: (N,).
        J: (N, P).
        Q: (N, P, P), symmetric in the last two dimensions.
        normaliser: see :class:`QuadraticModel`.

    Raises:
        ValueError: shapes that do not fit, or Q not symmetric.

    Examples:
        >>> Q = torch.zeros(3, 4, 4)  # linear regression
        >>> model = cx.toy.second_order_regression(torch.randn(3), torch.randn(3, 4), Q)
        >>> model.z.shape
        torch.Size([3])
    """
    where = "toy.second_order_regression"
    samples, parameters = J.shape
    _validate.require(
        z.shape == (samples,), where, f"z must have shape ({samples},)", tuple(z.shape)
    )
    shape = (samples, parameters, parameters)
    _validate.require(Q.shape == shape, where, f"Q must have shape {shape}", tuple(Q.shape))
    _validate.require(torch.allclose(Q, Q.mT), where, "Q must be symmetric", "Q != Q'")
    return QuadraticModel(z, J, lambda d: Q @ d, normaliser)


def quadratic_net(
    theta: Tensor, psi: Tensor, y: Tensor, *, phi: Tensor | None = None, mean: bool = True
) -> QuadraticModel:
    """f_a = theta . phi_a + (zeta / 2) theta' psi_a theta, zeta = (P / 2)^-1/2 (arXiv 2301.07737).

    Without ``phi`` this is the pure quadratic model of Meltzer et al., with ``phi`` their model
    with bias. They draw theta ~ N(0, 1).

    Args:
        theta: (P,) parameters.
        psi: (N, P, P) symmetric, or (N, P) for diagonal ones.
        y: (N,) targets.
        phi: (N, P) linear features; None for the pure model.
        mean: the loss is a mean over samples (times 1/2), else a sum.

    Raises:
        ValueError: shapes that do not fit.

    Examples:
        >>> model = cx.toy.quadratic_net(torch.randn(4), torch.randn(3, 4, 4), torch.randn(3))
        >>> model.J.shape
        torch.Size([3, 4])
    """
    where, samples, parameters = "toy.quadratic_net", len(y), len(theta)
    ok = psi.shape in ((samples, parameters), (samples, parameters, parameters))
    _validate.require(
        ok, where, f"psi must be ({samples}, {parameters}[, {parameters}])", tuple(psi.shape)
    )
    _validate.require(
        phi is None or phi.shape == (samples, parameters),
        where,
        f"phi must have shape ({samples}, {parameters})",
        phi,
    )
    zeta = (parameters / 2) ** -0.5

    def curvature(d: Tensor) -> Tensor:
        return zeta * (psi * d if psi.dim() == 2 else psi @ d)

    J = curvature(theta)
    f = J @ theta / 2
    if phi is not None:
        f, J = f + phi @ theta, J + phi
    return QuadraticModel(f - y, J, curvature, samples if mean else 1.0)


def neural_quadratic(
    U: Tensor, v: Tensor, x: Tensor, y: Tensor, *, mean: bool = False
) -> QuadraticModel:
    """Second-order Taylor model of f = W^-1/2 v . relu(U x / sqrt(D)).

    The neural quadratic model of Zhu et al. (arXiv 2205.11787): the activation pattern of the start
    is kept, with every term bilinear in the moves of U and v. Their loss is a sum over samples.
    Parameters: U row by row, then v.

    Args:
        U: (W, D) first layer, N(0, 1) in the paper.
        v: (W,) second layer, +-1 there.
        x: (N, D) inputs.
        y: (N,) targets.
        mean: divide the loss by N.

    Raises:
        ValueError: shapes that do not fit.

    Cost:
        The Jacobian, N W (D + 1) numbers; a step reads it a few times.

    Examples:
        >>> import numpy as np
        >>> U, v = cx.toy.draw_weights(64, 3, np.random.default_rng(0))
        >>> x, y = torch.randn(5, 3).double(), torch.randn(5).double()
        >>> model = cx.toy.neural_quadratic(U, v, x, y)
        >>> model.J.shape
        torch.Size([5, 256])
    """
    where = "toy.neural_quadratic"
    (width, inputs), samples = U.shape, len(y)
    _validate.require(v.shape == (width,), where, f"v must have shape ({width},)", tuple(v.shape))
    _validate.require(
        x.shape == (samples, inputs),
        where,
        f"x must have shape ({samples}, {inputs})",
        tuple(x.shape),
    )
    scaled = x / inputs**0.5
    gate = (scaled @ U.mT >= 0).to(U.dtype) * width**-0.5  # (N, W)

    def bilinear(first: Tensor, second: Tensor) -> Tensor:
        """Rows: gate_i * second_i * x / sqrt(D) for U, gate_i * (first_i . x / sqrt(D)) for v."""
        for_U = (gate * second)[:, :, None] * scaled[:, None, :]
        return torch.cat([for_U.flatten(1), gate * (scaled @ first.mT)], 1)

    def curvature(d: Tensor) -> Tensor:
        return bilinear(d[:-width].view(width, inputs), d[-width:])

    J = bilinear(U, v)
    f = J[:, -width:] @ v
    return QuadraticModel(f - y, J, curvature, samples if mean else 1.0)
