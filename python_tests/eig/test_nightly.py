"""Statements that need more time than the default run has: nightly."""

import pytest
import torch

import catapult_ext as cx


@pytest.mark.nightly
def test_top_eight_of_a_hessian_through_crossings():
    """48 steps of a small net: every probe's eight values against dense eigh."""
    data = cx.data.digits(train=32)
    model = cx.models.fully_connected(64, 10, width=10, depth=2)
    x, y = data.train
    start = cx.eigsh(cx.GGN(model, "half_mse", data.train)).eigenvalues[0].item()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.5 / start)
    tracker = cx.CurvatureTracker(
        model, "half_mse", data.train, quantity="hessian", k=8, every=4, optimizer=optimizer
    )
    with tracker:
        for _ in range(48):
            optimizer.zero_grad()
            loss = (model(x) - y).square().sum() / (2 * len(x))
            loss.backward()
            optimizer.step()
            row = tracker.step(loss)
            if row is None:
                continue
            dense = cx.Hessian(model, "half_mse", data.train).dense().double()
            exact = torch.linalg.eigvalsh((dense + dense.T) / 2).flip(0)[:8]
            for value, error, true in zip(row["values"], row["errors"], exact, strict=True):
                assert abs(value - true.item()) <= max(0.01 * abs(value), error)
