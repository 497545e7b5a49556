"""The public API on one device, in float32, against Jacobians and Hessians in float64.

``cpu`` rehearses what ``cuda`` does on a machine with a GPU (tools/gpu_check.py runs it there). A
GPU may use TF32 in convolutions and, where the user has asked for it, in matrix products: bounds
that hold only without must still hold.
"""

import copy

import pytest
import torch
from torch import nn

import catapult_ext as cx

pytestmark = pytest.mark.on_device


class Tokens(nn.Module):
    """A small transformer with a linear head."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        """(N, 2) from (N, T, 4)."""
        return self.head(self.block(x).mean(1))


def chain():
    layers = [nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)]
    return nn.Sequential(*layers), (5,)


def convolutional():
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2)]
    return nn.Sequential(*layers), (2, 5, 5)


def tokens():
    return Tokens(), (3, 4)


NETS = {"chain": chain, "convolutional": convolutional, "tokens": tokens}


class Problem:
    """A net and data on a device, and the exact matrices of its curvature in float64."""

    def __init__(self, name, device, samples=6):
        torch.manual_seed(3)
        net, shape = NETS[name]()
        self.net = net.eval()
        x, y = torch.randn(samples, *shape), torch.randn(samples, 2)
        exact = copy.deepcopy(self.net).double()
        self.exact_net = exact
        parameters = {n: p.detach() for n, p in exact.named_parameters()}
        buffers = dict(exact.named_buffers())

        def outputs(p):
            return torch.func.functional_call(exact, {**p, **buffers}, (x.double(),))

        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            blocks = torch.func.jacrev(outputs)(parameters)
            rows = [blocks[n].flatten(2).flatten(0, 1) for n in parameters]
        self.jacobian = torch.cat(rows, 1)
        self.ntk = self.jacobian @ self.jacobian.T
        self.ggn = self.jacobian.T @ self.jacobian / samples
        self.net.to(device)
        self.data = x.to(device), y.to(device)

    def hessian(self):
        """Of the half mean squared error, by reverse over reverse."""
        parameters = list(self.exact_net.parameters())
        flat = torch.cat([p.detach().flatten() for p in parameters])
        names = [n for n, _ in self.exact_net.named_parameters()]
        shapes = [p.shape for p in parameters]
        buffers = dict(self.exact_net.named_buffers())
        x, y = (t.cpu().double() for t in self.data)

        def loss(vector):
            parts = vector.split([s.numel() for s in shapes])
            given = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
            out = torch.func.functional_call(self.exact_net, {**given, **buffers}, (x,))
            return (out - y).square().sum() / (2 * len(x))

        return torch.autograd.functional.hessian(loss, flat)


def operator(kind, problem):
    if kind == "NTK":
        return cx.NTK(problem.net, problem.data[0]), problem.ntk
    make = {"GGN": cx.GGN, "Hessian": cx.Hessian}[kind]
    exact = problem.ggn if kind == "GGN" else problem.hessian()
    return make(problem.net, "half_mse", problem.data), exact


def assert_near(got, exact, device, tolerance=2e-5):
    assert got.device.type == device.type
    scale = float(exact.abs().max())
    assert float((got.cpu().double() - exact).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("kind", ["NTK", "GGN", "Hessian"])
@pytest.mark.parametrize("name", NETS)
def test_products(device, name, kind):
    problem = Problem(name, device)
    if (name, kind) == ("tokens", "Hessian"):
        pytest.skip("the exact Hessian of the transformer takes too long")
    op, exact = operator(kind, problem)
    v = torch.randn(len(exact), 3)
    assert_near(op @ v.to(device), exact @ v.double(), device)
    if kind == "NTK":
        assert_near(op.dense(), exact, device)
        assert_near(op.diagonal(), exact.diagonal(), device)


@pytest.mark.parametrize("kind", ["NTK", "GGN"])
@pytest.mark.parametrize("name", NETS)
def test_eigenvalues_lie_within_their_errors(device, name, kind):
    op, exact = operator(kind, Problem(name, device))
    found = cx.eigsh(op, k=2, tol=1e-4)
    assert found.eigenvalues.device.type == device.type
    right = torch.linalg.eigvalsh(exact).flip(0)[:2]
    distance = (found.eigenvalues.cpu().double() - right).abs()
    assert (distance <= found.errors.cpu().double()).all()
    assert (distance <= 2e-4 * right[0]).all()


def test_eigenvalues_of_an_explicit_matrix(device):
    generator = torch.Generator().manual_seed(0)
    for n in (3, 40, 200):
        x = torch.randn(n, n, generator=generator)
        matrix = x @ x.mT / n
        found = cx.eigsh(matrix.to(device), k=2, tol=1e-5)
        right = torch.linalg.eigvalsh(matrix.double()).flip(0)[:2]
        assert_near(found.eigenvalues, right, device, 2e-5)
        distance = (found.eigenvalues.cpu().double() - right).abs()
        assert (distance <= found.errors.cpu().double()).all()


def test_settings_of_the_user_spoil_no_bound(device):
    """Products in TF32 or bfloat16 are for training; curvature keeps its errors."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for name in NETS:
            op, exact = operator("GGN", Problem(name, device))
            found = cx.eigsh(op, tol=1e-4)
            distance = float(found.eigenvalues[0]) - float(torch.linalg.eigvalsh(exact)[-1])
            assert abs(distance) <= float(found.errors[0])
    finally:
        torch.set_float32_matmul_precision(before)


def test_solves_hold_their_bounds(device):
    for name in NETS:
        op, exact = operator("NTK", Problem(name, device))
        shift = 1e-2 * float(torch.linalg.eigvalsh(exact)[-1])
        right = torch.ones(op.shape[0], 2, dtype=torch.float64)
        wanted = torch.linalg.solve(exact + shift * torch.eye(len(exact), dtype=exact.dtype), right)
        matrix = op.dense()
        for a, options in ((op, {}), (matrix, {"method": "cg", "lower": 0.0}), (matrix, {})):
            found = cx.solve(a, right.to(device), shift=shift, tol=1e-5, **options)
            assert found.x.device.type == device.type
            # the explicit kernel is one rounded to float32
            rounded = 0.0 if a is op else 1e-5 * float(wanted.norm()) / 1e-2
            distance = (found.x.cpu().double() - wanted).norm(dim=0)
            assert (distance <= found.errors.cpu() + rounded).all()
        factor = cx.cholesky(matrix, shift=shift)
        assert factor.logdet() == pytest.approx(
            float(torch.logdet(exact + shift * torch.eye(len(exact), dtype=exact.dtype))), rel=1e-4
        )


def test_trace_and_density(device):
    op, exact = operator("GGN", Problem("chain", device))
    trace = cx.hutchinson_trace(op, samples=64)
    assert abs(float(trace.value) - float(exact.trace())) <= 5 * float(trace.error)
    density = cx.spectral_density(op, steps=8, samples=4)
    assert density.nodes.device.type in (device.type, "cpu")
    assert float(density.nodes.max()) <= 1.01 * float(torch.linalg.eigvalsh(exact)[-1])


def top_of_ggn(net, x, y):
    """Of half the mean squared error, by a Jacobian in float64 on the CPU."""
    exact = copy.deepcopy(net).cpu().double()
    parameters = {n: p.detach() for n, p in exact.named_parameters()}
    state = dict(exact.named_buffers())

    def outputs(p):
        return torch.func.functional_call(exact, {**p, **state}, (x.cpu().double(),))

    blocks = torch.func.jacrev(outputs)(parameters).values()
    jacobian = torch.cat([b.flatten(2).flatten(0, 1) for b in blocks], 1)
    return float(torch.linalg.matrix_norm(jacobian, 2)) ** 2 / len(x)


def test_tracker_in_a_training_loop(device):
    problem = Problem("tokens", device)
    x, y = problem.data
    optimizer = torch.optim.SGD(problem.net.parameters(), lr=0.05)
    exact = [top_of_ggn(problem.net, x, y)]
    options = {"optimizer": optimizer, "every": 3}
    with cx.CurvatureTracker(problem.net, "half_mse", problem.data, **options) as tracker:
        for _ in range(7):
            optimizer.zero_grad()
            loss = (problem.net(x) - y).square().sum() / (2 * len(x))
            loss.backward()
            optimizer.step()
            tracker.step(loss)
            exact.append(top_of_ggn(problem.net, x, y))
    rows = tracker.probes
    assert len(rows) >= 2
    for row in rows:
        assert row["values"][0] == pytest.approx(exact[row["step"]], rel=1e-2)


def test_window(device):
    problem = Problem("chain", device)
    found = cx.learning_rate_window(problem.net, "half_mse", problem.data)
    exact = float(torch.linalg.eigvalsh(problem.ggn)[-1])
    assert found.lambda0 == pytest.approx(exact, rel=2e-2)


def test_sweep(device, tmp_path):
    problem = Problem("chain", device, samples=12)
    found = cx.sweep(problem.net, problem.data, c=[0.5, 30.0], steps=12, out=tmp_path / "run")
    assert found.phases[0] == "lazy"
    assert found.phases[1] == "divergent"


@pytest.mark.parametrize("form", ["direct", "reduced"])
def test_toy_simulate(device, form):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(7, generator=generator, dtype=torch.float64)
    options = {"width": 64, "steps": 25, "form": form, "seed": 1}
    eta = torch.tensor([0.05, 0.1, 50.0], dtype=torch.float64)
    right = cx.toy.simulate(eta, x=x, y=y, **options)
    got = cx.toy.simulate(eta.to(device), x=x.to(device), y=y.to(device), **options)
    assert got.loss.device.type == device.type
    torch.testing.assert_close(got.loss.cpu()[:2], right.loss[:2], rtol=1e-9, atol=0)
    assert got.diverged_at.cpu().tolist() == right.diverged_at.tolist()
    assert int(got.diverged_at[2]) > 0


def test_noisy_momentum(device):
    beta = torch.tensor([0.0, 0.5], dtype=torch.float64)
    right = cx.toy.lyapunov_edge(beta, 0.3, tolerance=0.1, paths=16)
    got = cx.toy.lyapunov_edge(beta.to(device), 0.3, tolerance=0.1, paths=16)
    assert_near(got.value, right.value, device, 1e-9)
