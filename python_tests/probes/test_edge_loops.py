"""EdgeMeter in loops of every kind: clipping, scaling, batches, and steps gone wrong."""

import copy
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import catapult_ext as cx

HERE = Path(__file__)
spec = importlib.util.spec_from_file_location("problems", HERE.with_name("edge_problems.py"))
problems = importlib.util.module_from_spec(spec)
spec.loader.exec_module(problems)
LINEAR, OTHERS, NETS = problems.LINEAR, problems.OTHERS, problems.NETS
Problem, filters, plain_zeta = problems.Problem, problems.filters, problems.plain_zeta
optim = torch.optim


def test_mini_batches_leave_random_state_and_buffers_alone():
    torch.manual_seed(0)
    x, y = torch.randn(64, 5), torch.randn(64, 2)

    def train(metered):
        torch.manual_seed(1)
        layers = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)]
        model = nn.Sequential(*layers)
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        meter = cx.EdgeMeter(model, optimizer, every=2) if metered else None
        for t in range(7):
            i = torch.randperm(64)[:16]
            optimizer.zero_grad()
            began = torch.get_rng_state()
            loss = (model(x[i]) - y[i]).square().mean()
            loss.backward()
            optimizer.step()
            if meter is not None:
                row = meter.step(loss, evaluate=lambda i=i: (model(x[i]) - y[i]).square().mean())
                assert (row is None) == (t % 2 == 1)
        if meter is not None:
            with torch.random.fork_rng():
                torch.set_rng_state(began)
                again = copy.deepcopy(model)(x[i])  # the same dropout mask
            after = (again - y[i]).square().mean().item()
            assert row["change"] == pytest.approx(after - loss.item(), abs=1e-7)
            assert len(meter.rows) == 4
        model.eval()
        return [*model.state_dict().values(), torch.get_rng_state(), torch.rand(1)], meter

    plain, _ = train(metered=False)
    metered, meter = train(metered=True)
    assert all(math.isfinite(row["zeta"]) for row in meter.rows)
    for a, b in zip(plain, metered, strict=True):
        assert torch.equal(a, b)


def clip(weights):
    nn.utils.clip_grad_norm_(weights, 0.05)


def clip_values(weights):
    nn.utils.clip_grad_value_(weights, 0.01)


@pytest.mark.parametrize("change", [clip, clip_values])
@pytest.mark.parametrize("scaled", [False, True])
def test_clipping_and_loss_scaling(change, scaled):
    expected = plain_zeta(Problem("mlp"), LINEAR["heavy ball"], change=change)
    problem = Problem("mlp")
    optimizer = LINEAR["heavy ball"](problem.model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    with cx.EdgeMeter(problem.model, optimizer, full_batch=True) as meter:
        for _ in range(5):
            optimizer.zero_grad()
            loss = problem.loss()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            change(problem.model.parameters())
            scaler.step(optimizer)
            scaler.update()
            meter.step(loss)
    assert [row["flags"] for row in meter.rows] == [[]] * 4 + [["no next loss"]]
    assert meter.rows[3]["zeta"] == pytest.approx(expected, rel=1e-9)


def test_a_scaler_without_clipping_and_a_step_it_skips():
    expected = plain_zeta(Problem("mlp"), LINEAR["Adam"], loops=3)
    problem = Problem("mlp")
    optimizer = LINEAR["Adam"](problem.model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    with cx.EdgeMeter(problem.model, optimizer, full_batch=True) as meter:
        for t in range(5):
            optimizer.zero_grad()
            loss = problem.loss()
            scaler.scale(loss).backward()
            if t == 3:
                next(problem.model.parameters()).grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            meter.step(loss)
    assert meter.rows[2]["zeta"] == pytest.approx(expected, rel=1e-9)
    assert meter.rows[3]["flags"] == ["no optimizer step"]
    assert math.isnan(meter.rows[3]["zeta"])


def test_a_change_that_begins_later_costs_one_row():
    problem = Problem("mlp")
    optimizer = LINEAR["SGD"](problem.model.parameters())
    with cx.EdgeMeter(problem.model, optimizer, full_batch=True) as meter:
        for t in range(5):
            optimizer.zero_grad()
            loss = problem.loss()
            loss.backward()
            if t >= 2:
                clip(problem.model.parameters())
            optimizer.step()
            meter.step(loss)
    assert [len(row["flags"]) for row in meter.rows] == [0, 0, 1, 0, 1]
    assert "gradient changed" in meter.rows[2]["flags"][0]
    expected = plain_zeta(Problem("mlp"), LINEAR["SGD"], loops=2)
    assert meter.rows[1]["zeta"] == pytest.approx(expected, rel=1e-9)


def test_accumulation_groups_and_schedules():
    problem = Problem("mlp")
    first, *rest = problem.model.parameters()
    groups = [{"params": [first], "lr": 0.2}, {"params": rest}]
    optimizer = optim.SGD(groups, lr=0.05, momentum=0.9)
    schedule = optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    parts = [slice(0, 3), slice(3, 9)]

    def loss_of(part):
        out = nn.functional.cross_entropy(
            problem.model(problem.x[part]), problem.y[part], reduction="sum"
        )
        return out / len(problem.x)

    with cx.EdgeMeter(problem.model, optimizer, curvature_every=1, tol=1e-10) as meter:
        for _ in range(4):
            optimizer.zero_grad()
            total = 0.0
            for part in parts:
                loss = loss_of(part)
                loss.backward()
                total += loss.item()
            rates = [g["lr"] for g in optimizer.param_groups]
            start = [p.detach().clone() for p in problem.model.parameters()]
            optimizer.step()
            schedule.step()
            row = meter.step(total, evaluate=lambda: sum(loss_of(part) for part in parts))
            full = problem.loss().item() - total
            assert row["change"] == pytest.approx(full, rel=1e-9)
    scale = torch.cat(
        [
            torch.full((first.numel(),), rates[0]),
            *[torch.full((p.numel(),), rates[1]) for p in rest],
        ]
    ).double()
    h = problem.hessian(start, list(problem.model.parameters()))
    top = torch.linalg.eigvalsh(scale.sqrt()[:, None] * h * scale.sqrt())[-1].item()
    assert row["eta_sharpness"] == pytest.approx(top, rel=1e-6)
    assert row["threshold"] == pytest.approx(3.8)
    assert row["chi"] == pytest.approx(top / 3.8, rel=1e-6)


class Ascends(optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.add_(p.grad, alpha=0.1)


def wrong(kind, problem, optimizer):
    """One step that cannot be measured; returns its loss."""
    optimizer.zero_grad()
    loss = problem.loss()
    if kind == "closure":

        def closure():
            optimizer.zero_grad()
            out = problem.loss()
            out.backward()
            return out

        return optimizer.step(closure)
    loss.backward()
    if kind == "no gradient":
        next(problem.model.parameters()).grad = None
    if kind != "no optimizer step":
        optimizer.step()
    if kind == "stepped twice":
        optimizer.step()
    if kind == "not finite":
        return float("nan")
    return None if kind == "no loss" else loss


WRONG = {
    "closure": "closure",
    "no gradient": "no gradient of 1 parameters",
    "no optimizer step": "no optimizer step",
    "stepped twice": "stepped twice",
    "no loss": "no loss",
    "not finite": "no loss",
}


@pytest.mark.parametrize("full_batch", [True, False])
@pytest.mark.parametrize("kind", WRONG)
def test_a_step_gone_wrong_is_one_row_of_nan(kind, full_batch):
    problem = Problem("mlp")
    optimizer = LINEAR["SGD"](problem.model.parameters())
    options = {"full_batch": full_batch, "curvature_every": 1}
    with cx.EdgeMeter(problem.model, optimizer, **options) as meter:
        meter.step(problem.step(optimizer), evaluate=problem.loss)
        meter.step(wrong(kind, problem, optimizer), evaluate=problem.loss)
        meter.step(problem.step(optimizer), evaluate=problem.loss)
        meter.step(problem.step(optimizer), evaluate=problem.loss)
    row = meter.rows[1]
    assert any(flag.startswith(WRONG[kind]) for flag in row["flags"])
    assert math.isnan(row["zeta"])
    assert math.isnan(row["chi"])
    assert math.isfinite(meter.rows[2]["zeta"])
    assert meter.rows[2]["flags"] == []


def test_ascent_is_flagged():
    problem = Problem("mlp")
    optimizer = Ascends(problem.model.parameters())
    with cx.EdgeMeter(problem.model, optimizer) as meter:
        row = meter.step(problem.step(optimizer), evaluate=problem.loss)
    assert row["flags"] == ["g.u <= 0"]
    assert row["descent"] < 0
    assert math.isnan(row["zeta"])


def test_a_closure_that_holds_its_gradient_is_measured():
    expected = plain_zeta(Problem("mlp"), LINEAR["Adam"], loops=1)
    problem = Problem("mlp")
    optimizer = LINEAR["Adam"](problem.model.parameters())
    meter = cx.EdgeMeter(problem.model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        meter.hold_gradient()
        return loss

    row = meter.step(optimizer.step(closure), evaluate=problem.loss)
    assert row["zeta"] == pytest.approx(expected, rel=1e-9)


def test_a_dead_net_is_followed_to_its_end():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
        model[2].bias.zero_()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 3)
    with cx.EdgeMeter(model, optimizer, full_batch=True, curvature_every=1) as meter:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            meter.step(loss, evaluate=lambda: model(x).square().mean())
    assert [row["flags"][0] for row in meter.rows] == ["g.u <= 0"] * 3


def test_divergence_and_dropout_and_outside_changes_are_flagged():
    problem = Problem("mlp")
    optimizer = LINEAR["SGD"](problem.model.parameters())
    with cx.EdgeMeter(problem.model, optimizer, full_batch=True) as meter:
        meter.step(problem.step(optimizer))
        with torch.no_grad():
            next(problem.model.parameters()).mul_(0.5)
        meter.step(problem.step(optimizer))
        meter.step(math.inf)
    assert meter.rows[0]["flags"] == ["parameters changed between steps"]
    assert meter.rows[1]["flags"] == ["loss not finite"]
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with cx.EdgeMeter(model, optimizer, full_batch=True) as meter:
        for _ in range(2):
            loss = model(torch.ones(8, 3)).square().mean()
            loss.backward()
            optimizer.step()
            meter.step(loss)
    assert meter.rows[0]["flags"] == ["dropout"]


def test_an_operation_without_second_derivative_is_a_reason():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 1.0 * g

    problem = Problem("mlp")
    net = problem.model
    problem.model = nn.Sequential(net)
    problem.loss = lambda: Once.apply(net(problem.x)).square().mean()
    optimizer = LINEAR["SGD"](net.parameters())
    with cx.EdgeMeter(net, optimizer, curvature_every=1) as meter:
        row = meter.step(problem.step(optimizer), evaluate=problem.loss)
    assert math.isfinite(row["zeta"])
    assert "no second derivative" in row["reason"]
    assert math.isnan(row["chi"])


def test_sparse_gradients():
    """SparseAdam: only the rows that were looked up move."""
    torch.manual_seed(0)
    table = nn.Embedding(7, 3, sparse=True).double()
    optimizer = optim.SparseAdam(table.parameters(), lr=0.1)
    words = torch.tensor([1, 4, 4, 6])
    with cx.EdgeMeter(table, optimizer) as meter:
        for _ in range(3):
            before = table.weight.detach().clone()
            optimizer.zero_grad()
            loss = table(words).square().sum()
            loss.backward()
            gradient = table.weight.grad.to_dense()
            optimizer.step()
            row = meter.step(loss, evaluate=lambda: table(words).square().sum())
            moved = before - table.weight.detach()
            change = table(words).square().sum().item() - loss.item()
            assert row["flags"] == []
            assert row["zeta"] == pytest.approx(
                1 + change / float((gradient * moved).sum()), rel=1e-9
            )


def test_one_hook_a_backward_pass_until_a_gradient_changes():
    problem = Problem("mlp")
    optimizer = LINEAR["SGD"](problem.model.parameters())

    def hooked():
        held = [p._post_accumulate_grad_hooks for p in problem.model.parameters()]
        return sum(len(hooks or ()) for hooks in held)

    with cx.EdgeMeter(problem.model, optimizer, full_batch=True) as meter:
        counts = [hooked()]
        for t in range(4):
            optimizer.zero_grad()
            loss = problem.loss()
            loss.backward()
            if t == 2:
                clip(problem.model.parameters())
            optimizer.step()
            meter.step(loss)
            counts.append(hooked())
    assert counts == [5, 1, 1, 5, 1]
    assert hooked() == 0


def test_a_backward_pass_without_the_hooked_parameter_is_seen():
    """Two losses, the second of which does not reach the last parameter."""
    problem = Problem("mlp")
    optimizer = LINEAR["SGD"](problem.model.parameters())
    first = problem.model[0]

    def losses():
        return problem.loss(), first.weight.square().sum()

    with cx.EdgeMeter(problem.model, optimizer) as meter:
        for t in range(4):
            optimizer.zero_grad()
            one, two = losses()
            one.backward()
            if t > 0:
                two.backward()
            total = one + two if t > 0 else one
            gradient = [p.grad.clone() for p in problem.model.parameters()]
            before = [p.detach().clone() for p in problem.model.parameters()]
            optimizer.step()
            evaluate = (lambda: sum(losses())) if t > 0 else problem.loss
            row = meter.step(total, evaluate=evaluate)
            after = list(problem.model.parameters())
            descent = sum(
                float((g * (b - a.detach())).sum())
                for g, b, a in zip(gradient, before, after, strict=True)
            )
            if t != 1:
                assert row["flags"] == []
                assert row["descent"] == pytest.approx(descent, rel=1e-9)
    assert "gradient changed" in meter.rows[1]["flags"][0]


def test_batch_sharpness_can_be_left_out():
    problem = Problem("mlp")
    optimizer = LINEAR["SGD"](problem.model.parameters())
    options = {"curvature_every": 1, "batch_sharpness": False}
    with cx.EdgeMeter(problem.model, optimizer, **options) as meter:
        row = meter.step(problem.step(optimizer), evaluate=problem.loss)
        assert math.isfinite(row["chi"])
        assert math.isnan(row["eta_batch_sharpness"])
        with pytest.raises(ValueError, match="a row must have curvature"):
            meter.batch_sharpness()


def test_a_long_run_leaves_a_bounded_record():
    model = nn.Linear(1, 1, bias=False)
    optimizer = optim.SGD(model.parameters(), lr=1e-6)
    model.weight.grad = torch.ones(1, 1)
    with cx.EdgeMeter(model, optimizer, full_batch=True) as meter:
        for t in range(8300):
            optimizer.step()
            meter.step(1.0 - 1e-6 * t)
    assert len(meter.rows) <= 2 * 4096 + 1
    assert meter.rows[-1]["step"] == 8299


def test_hooks_go_with_the_meter():
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with cx.EdgeMeter(model, optimizer, full_batch=True) as meter:
        pass
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not model._forward_pre_hooks
    assert not model.weight._post_accumulate_grad_hooks
    with pytest.raises(ValueError, match="the meter must be open"):
        meter.step(1.0)


class Wrapper:
    """As accelerate wraps an optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_a_wrapped_optimizer():
    problem = Problem("mlp")
    optimizer = LINEAR["SGD"](problem.model.parameters())
    with cx.EdgeMeter(problem.model, Wrapper(optimizer)) as meter:
        row = meter.step(problem.step(optimizer), evaluate=problem.loss)
    assert math.isfinite(row["zeta"])


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    expected = plain_zeta(Problem("mlp"), LINEAR["Adam"], loops=2)
    problem = Problem("mlp")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    given = LINEAR["Adam"](problem.model.parameters())
    problem.model, optimizer = accelerator.prepare(problem.model, given)
    row = None
    with cx.EdgeMeter(problem.model, optimizer) as meter:
        for _ in range(4):  # micro-batches of two steps, both of the same samples
            with accelerator.accumulate(problem.model):
                loss = problem.loss()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    row = meter.step(loss, evaluate=problem.loss)
    assert row["flags"] == []
    assert row["zeta"] == pytest.approx(expected, rel=1e-9)


def test_bad_arguments():
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"EdgeMeter: model must be a torch\.nn\.Module"):
        cx.EdgeMeter("model", optimizer)
    with pytest.raises(TypeError, match=r"EdgeMeter: optimizer must be a torch\.optim"):
        cx.EdgeMeter(model, "optimizer")
    with pytest.raises(TypeError, match=r"one step from one gradient \(LBFGS.*got LBFGS"):
        cx.EdgeMeter(model, optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        cx.EdgeMeter(model, optimizer, every=0)
    with pytest.raises(ValueError, match="a multiple of every, got 3"):
        cx.EdgeMeter(model, optimizer, every=2, curvature_every=3)
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(ValueError, match=r"EdgeMeter\.step: evaluate must be given"):
        cx.EdgeMeter(model, optimizer).step(1.0)
