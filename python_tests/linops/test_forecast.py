"""A plan in seconds: from its flops and bytes, by rates of the machine that are measured once."""

import pytest
import torch

import catapult_ext as cx
from catapult_ext.linops.engines import machine_rate as rates
from catapult_ext.linops.engines import plan as plans

DATA = cx.data.digits(train=24).train
NET = cx.models.fully_connected(64, 10, width=16, depth=2)


@pytest.fixture
def rate(monkeypatch):
    """A machine of one GFLOP/s, 100 MB/s and a million calls a second."""
    monkeypatch.setattr(plans, "machine_rate", lambda device, dtype: rates.Rate(1e9, 1e8, 1e6))


def test_products_in_seconds(rate):
    plan = cx.GGN(NET, "half_mse", DATA).plan
    assert plan.product_calls > 5
    expected = plan.product_flops / 1e9 + plan.product_bytes / 1e8 + plan.product_calls / 1e6
    assert plan.product_seconds == pytest.approx(expected)
    assert expected > 1e-3
    assert f"moved, about {expected:.2g} s, per column" in str(plan)


def test_dense_matrices_in_seconds_and_bytes(rate):
    ggn = cx.GGN(NET, "half_mse", DATA)
    plan, n = ggn.plan, ggn.shape[0]
    assert (plan.side, plan.dense_bytes) == (n, 4 * n * n)
    calls = plan.product_calls * -(-n // plan.columns)
    expected = n * plan.product_flops / 1e9 + 4 * n * n / 1e8 + calls / 1e6
    assert plan.dense_seconds == pytest.approx(expected)
    line = str(plan).splitlines()[-1]
    assert line.startswith(f"dense()  ({n}, {n}), ")
    assert line.endswith(" s")


@pytest.mark.parametrize("engine", ["dense-chain", "autograd"])
def test_kernels_take_no_more_than_their_products(engine, rate):
    kernel = cx.NTK(NET, DATA[0], engine=engine)
    plan = kernel.plan
    assert plan.side == kernel.shape[0] == 240
    assert 0 < plan.dense_flops <= 240 * plan.product_flops
    assert plan.dense_room >= plan.peak


def test_the_room_beside_a_kernel_grows_with_the_samples():
    few, many = (cx.NTK(NET, torch.randn(n, 64)) for n in (64, 4096))
    ratio = (many.plan.dense_room - many.plan.peak) / 4096
    assert many.plan.dense_room > few.plan.dense_room
    # derivatives of 10 outputs by 2 x 16 + 10 units, on both sides
    assert many.plan.dense_room >= 4096 * 2 * 10 * 42 * 4
    assert ratio >= 0


def test_a_jacobian_is_not_square(rate):
    plan = cx.Jacobian(NET, DATA[0]).plan
    assert plan.side == 0
    assert "dense()" not in str(plan)


def test_rates_are_measured_once_for_a_device_dtype_and_number_of_threads(monkeypatch):
    calls = []

    def fastest(device, call):
        call()
        calls.append(device)
        return 0.5

    monkeypatch.setattr(rates, "_fastest", fastest)
    rates._measured.cache_clear()
    device = torch.device("cpu")
    found = [rates.machine_rate(device, torch.float32) for _ in range(3)]
    assert len(calls) == 3  # a product, a copy, small calls
    assert found[0].flops == pytest.approx(2 * 384**3 / 0.5)
    assert found[0].bytes == pytest.approx((32 << 20) / 0.5)
    rates.machine_rate(device, torch.float64)
    assert len(calls) == 6
    rates._measured.cache_clear()


def test_an_operator_measures_nothing_before_it_is_asked(monkeypatch):
    def measured(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(plans, "machine_rate", measured)
    plan = cx.NTK(NET, DATA[0]).plan
    assert plan.product_flops > 0
    with pytest.raises(AssertionError, match="measured"):
        str(plan)
