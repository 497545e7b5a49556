"""TopTracker of R operators at once: each replica as if it were followed alone."""

import pytest
import torch
from eig.test_replicas import Several
from eig.test_tracking import drifting

import catapult_ext as cx


def sequences(steps, dtype):
    """Batches (4, n, n): two replicas that drift, one that stands still, one that jumps."""
    first = list(drifting(steps, dtype))
    second = list(drifting(steps, dtype, scale=3.0, lowest=-4.0))[::-1]
    for i in range(steps):
        jump = first[0] * (1.0 if i < steps // 2 else 2.0)
        yield torch.stack([first[i], second[i], first[0], jump])


@pytest.mark.parametrize("k", [1, 3])
def test_errors_hold_and_products_are_saved(k, dtype):
    tracker = cx.TopTracker(k)
    checks, products = 0, torch.zeros(4, dtype=torch.long)
    for a in sequences(40, dtype):
        operator = Several(a)
        found = tracker.update(operator)
        exact = torch.linalg.eigvalsh(a.double()).flip(1)[:, :k]
        miss = (found.eigenvalues.double() - exact).abs()
        assert (miss <= found.errors.double()).all(), (miss, found.errors)
        assert found.converged.all()
        assert (found.errors <= 1.00001e-3 * found.eigenvalues.abs()).all()
        rest = a.double() @ found.eigenvectors.double()
        rest -= found.eigenvectors.double() * found.eigenvalues.double()[:, None]
        slack = (1e-5 if dtype == torch.float32 else 1e-12) * 4
        assert (rest.norm(dim=1) <= slack + found.residuals.double()).all()
        assert (operator.counts >= found.matvecs).all()
        products += found.matvecs
        checks += found.index_check.count("random(0.99)")
    assert 4 * 4 <= checks < 4 * 30
    assert "inherited" in found.index_check
    cold = cx.eigsh(Several(a), k).matvecs
    assert (products < 0.75 * 40 * cold).all()


def test_a_replica_that_is_not_finite_touches_no_other_and_may_come_back():
    tracker, alone = cx.TopTracker(1), cx.TopTracker(1)
    for i, a in enumerate(list(sequences(40, torch.float64))[:12]):
        clean = a.clone()
        if 3 <= i < 6:
            a[1, 0, 0] = float("nan")
        found, whole = tracker.update(Several(a)), alone.update(Several(clean))
        kept = [0, 2, 3]
        exact = torch.linalg.eigvalsh(clean)[:, -1]
        for r in kept if 3 <= i < 6 else range(4):
            assert (found.eigenvalues[r, 0] - exact[r]).abs() <= found.errors[r, 0]
        if 3 <= i < 6:
            assert found.eigenvalues[1].isnan().all()
            assert not found.converged[1]
            assert found.index_check[1] == "not finite"
        torch.testing.assert_close(found.matvecs[kept], whole.matvecs[kept])


def test_a_check_sees_a_value_that_nothing_carried():
    a = torch.stack(list(drifting(2, torch.float64)))
    hidden = torch.zeros(80, dtype=torch.float64)
    hidden[0] = 1
    tracker = cx.TopTracker(1, check_every=2)
    for step in range(4):
        spike = 5.0 * torch.outer(hidden, hidden) if step >= 1 else 0.0
        found = tracker.update(Several(a + spike), check=step == 3)
    exact = torch.linalg.eigvalsh(a + spike)[:, -1:]
    assert ((found.eigenvalues - exact).abs() <= found.errors).all()
    assert tracker.checks >= 3
    assert tracker.warm


def test_explicit_batches_are_proved_at_every_update():
    tracker = cx.TopTracker(2)
    for a in sequences(3, torch.float64):
        found = tracker.update(a)
        exact = torch.linalg.eigvalsh(a).flip(1)[:, :2]
        assert set(found.index_check) == {"inertia"}
        assert ((found.eigenvalues - exact).abs() <= found.errors).all()


def test_a_tracker_of_networks_follows_their_duals():
    data = cx.data.digits(train=32)
    nets = [cx.models.fully_connected(64, 10, width=12, depth=2, seed=s) for s in range(3)]
    tracker = cx.TopTracker(1)
    for _ in range(4):
        found = tracker.update(cx.GGN(nets, "half_mse", data.train))
        for r, net in enumerate(nets):
            top = cx.eigsh(cx.GGN(net, "half_mse", data.train), tol=1e-6)
            apart = (found.eigenvalues[r] - top.eigenvalues).abs()
            assert (apart <= found.errors[r] + top.errors).all()
        with torch.no_grad():
            for net in nets:
                for p in net.parameters():
                    p.mul_(0.999)
    assert found.index_check == ("inherited",) * 3
    assert found.eigenvectors.shape[1] == cx.GGN(nets[0], "half_mse", data.train).shape[0]


def test_replicas_leave_and_the_others_go_on_as_before():
    """What is found of a replica does not depend on the others."""
    tracker, whole = cx.TopTracker(2, check_every=4), cx.TopTracker(2, check_every=4)
    kept = [3, 0]
    for i, a in enumerate(sequences(12, torch.float64)):
        if i == 5:
            tracker.keep(kept)
        found = tracker.update(Several(a[kept] if i >= 5 else a))
        every = whole.update(Several(a))
        if i >= 5:
            torch.testing.assert_close(found.eigenvalues, every.eigenvalues[kept])
            assert torch.equal(found.matvecs, every.matvecs[kept])
    assert "inherited" in found.index_check


def test_only_a_batch_has_replicas_to_keep():
    tracker = cx.TopTracker(1)
    with pytest.raises(ValueError, match="followed a batch"):
        tracker.keep([0])
    tracker.update(Several(torch.eye(4).expand(2, 4, 4)))
    for wrong in ([], [2], [-1]):
        with pytest.raises(ValueError, match="numbers below 2"):
            tracker.keep(wrong)


def test_a_jump_ends_the_refinement_at_once():
    """A space that would not reach tol, or a value that has moved, costs its block and a check."""
    one = torch.stack(list(drifting(2, torch.float64)))
    tracker, checked = cx.TopTracker(1), cx.TopTracker(1, check_every=1)
    for a in (one, one.flip(1, 2)):  # the same values along other axes
        found, solved = tracker.update(Several(a)), checked.update(Several(a))
    assert (found.matvecs <= solved.matvecs + tracker.k + tracker.guards).all()
    assert set(found.index_check) == {"random(0.99)"}


def test_explicit_batches_have_replicas_to_keep():
    a = torch.diag_embed(torch.rand(3, 20, generator=torch.Generator().manual_seed(0)))
    tracker = cx.TopTracker(2)
    tracker.update(a)
    loaded = cx.TopTracker(2)
    loaded.load_state_dict(tracker.state_dict())
    for one in (tracker, loaded):
        one.keep([2, 0])
        assert one.update(a[[2, 0]]).eigenvalues.shape == (2, 2)
        with pytest.raises(ValueError, match="below 2"):
            one.keep([2])
