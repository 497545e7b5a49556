"""The pretended CUDA device: right numbers, refused mixtures, and waits that are counted."""

import pytest
import torch

from catapult_ext import ops
from catapult_ext.testing import pretended
from catapult_ext.testing.pretended import DEVICE, moved, pretended_cuda

pytestmark = pytest.mark.skipif(
    bool(pretended.why_unavailable("cpu")), reason=pretended.why_unavailable("cpu")
)


@pytest.fixture
def device():
    with pretended_cuda("cpu") as found:
        yield found


def test_numbers_derivatives_and_views_are_those_of_the_cpu(device):
    x = torch.randn(4, 3, dtype=torch.float64)
    weight = torch.randn(2, 3, dtype=torch.float64)

    def gradient(x, weight):
        weight = weight.clone().requires_grad_()
        loss = torch.tanh(x @ weight.T)[1:].square().sum()
        return torch.autograd.grad(loss, weight)[0]

    there = gradient(moved(x), moved(weight))
    assert there.device == DEVICE
    assert torch.equal(there.cpu(), gradient(x, weight))

    def slope(t):
        return torch.func.jvp(lambda w: torch.sin(w).sum(0), (t,), (t,))[1]

    assert torch.equal(slope(moved(x)).cpu(), slope(x))
    rows = torch.func.vmap(lambda row: row.cumsum(0) + torch.ones(3, device=row.device))
    assert torch.equal(rows(moved(x)).cpu(), rows(x))
    held = moved(x)
    held[1].zero_()
    assert held.cpu()[1].abs().sum() == 0
    assert held[1].data_ptr() == held.data_ptr() + 3 * 8


def test_a_module_moves_with_its_ties(device):
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    net[2].weight = net[0].weight
    moved(net)
    assert net[2].weight is net[0].weight
    assert {t.device for t in net.state_dict().values()} == {DEVICE}
    net(moved(torch.randn(5, 3))).sum().backward()
    assert net[0].weight.grad.device == DEVICE


def test_mixed_devices_and_silent_copies_are_refused(device):
    here, there = torch.ones(3), moved(torch.ones(3))
    for mixture in (
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: there[torch.tensor([0, 1])],
        lambda: here.copy_(there),
        lambda: there.__setitem__(slice(0, 2), here[:2]),
    ):
        with pytest.raises(RuntimeError, match="cpu"):
            mixture()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert torch.equal((there * torch.tensor(2.0)).cpu(), 2 * here)  # torch takes a number so


def test_what_makes_the_host_wait_is_counted(device):
    x = moved(torch.tensor([1.0, 0.0, 2.0]))
    device.reset()
    y = (2 * x + 1).exp()
    assert not device.waits
    assert device.kernels.total() == 3
    waits = {
        "item": [lambda: x.sum().item(), lambda: bool(x.sum() > 0), lambda: f"{x.sum():.3g}"],
        "copy to the host": [x.cpu, x.tolist, lambda: y.to("cpu")],
        "copy to the device": [lambda: torch.ones(3).to(DEVICE)],
        "nonzero": [x.nonzero],
        "boolean index": [lambda: x[x > 0], lambda: x.__setitem__(x > 0, y[:2])],
        "equal": [lambda: torch.equal(x, y)],
        "linalg": [lambda: torch.linalg.eigvalsh(x[:, None] * x)],
        "synchronize": [torch.cuda.synchronize],
    }
    for kind, actions in waits.items():
        for action in actions:
            device.reset()
            action()
            assert device.waits == {kind: 1}
            assert f"{kind} at testing/test_pretended.py" in next(iter(device.places))
    device.reset()
    torch.where(x > 0, x, y).clamp_min_(0)
    x[x > 0] = 0.0  # filled in place by a mask
    assert not device.waits


def test_the_clock_shows_where_the_device_works():
    """Launches cost the host little; the next wait costs it what the device has left to do."""
    with pretended_cuda("cpu", launch_seconds=1.0, kernel_seconds=100.0) as device:
        x = moved(torch.ones(3))
        device.host = device.done = 0.0
        (x + 1).sin()
        assert device.clock() == 2.0
        x.sum().item()
        assert device.clock() == 301.0


def test_a_graph_replays_into_the_same_memory(device):
    x = moved(torch.ones(3))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = 2 * x
        x += y
    for expected in (9.0, 27.0):
        graph.replay()
        assert x.cpu()[0] == expected
        assert y.cpu()[0] == 2 * expected / 3
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.sum().item()


@pytest.mark.skipif(bool(pretended.why_unavailable()), reason=pretended.why_unavailable())
def test_native_ops_run_the_emulated_kernels():
    alpha, beta = torch.randn(3, 5), torch.randn(3, 4)
    with pretended_cuda() as device:
        found = ops.tridiag_eigh(*moved((alpha, beta)))
        assert device.kernels["tridiag_eigh"] == 1
        assert not device.waits
        values = found[0].cpu()
    torch.testing.assert_close(values, ops.tridiag_eigh(alpha, beta)[0])


def test_the_process_is_left_as_it_was():
    before = torch.cuda.is_available, torch.cuda.current_device
    with pretended_cuda("cpu"):
        t = moved(torch.ones(2))
    assert (torch.cuda.is_available, torch.cuda.current_device) == before
    with pytest.raises(RuntimeError, match="outside pretended_cuda"):
        t + 1
