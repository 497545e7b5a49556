from __future__ import annotations

import pytest
import torch

from catapult_ext import data


def test_gaussian():
    d = data.gaussian(400, 10, in_features=30, mean=0.5, seed=1)
    assert d.x_train.mean().item() == pytest.approx(0.5, abs=0.03)
    assert d.x_train.var().item() == pytest.approx(1, abs=0.03)
    assert set(d.y_train.flatten().tolist()) == {-1.0, 1.0}
    assert (d.y_test.shape, d.classes) == ((10, 1), False)
    assert data.gaussian(labels="zero").y_train.abs().max() == 0
    assert data.gaussian(seed=1).fingerprint() != data.gaussian(seed=2).fingerprint()


def test_synthetic_images_are_standardised_and_learnable():
    d = data.synthetic_images(300, 200, shape=(3, 16, 16), classes=4, noise=0.5)
    assert d.x_train.shape == (300, 3, 16, 16)
    assert d.x_train.mean().abs() < 1e-5
    assert d.x_train.var(correction=0).item() == pytest.approx(1, rel=1e-4)
    # The nearest class mean of the training set already finds most test classes.
    means = torch.stack([d.x_train[d.y_train[:, c] == 1].mean(dim=0).flatten() for c in range(4)])
    guess = torch.cdist(d.x_test.flatten(1), means).argmin(dim=1)
    assert (guess == d.y_test.argmax(dim=1)).float().mean() > 0.8


def test_augment_shifts_and_mirrors_without_losing_pixels():
    x = torch.zeros(200, 2, 6, 6)
    x[:, 0, 2, 1], x[:, 1, 2, 1] = 1, 2
    generator = torch.Generator().manual_seed(0)
    y = data.Augment(crop=1)(x, generator)
    assert y.shape == x.shape
    assert y[:, 0].sum(dim=(1, 2)).eq(1).all()  # a shift by one never takes this pixel out
    assert torch.equal(y[:, 1], 2 * y[:, 0])
    places = {tuple(p.tolist()) for p in y[:, 0].nonzero()[:, 1:]}
    assert places == {(r, c) for r in (1, 2, 3) for c in (0, 1, 2, 3, 4, 5)}
    again = data.Augment(crop=1)(x, torch.Generator().manual_seed(0))
    assert torch.equal(y, again)
    assert torch.equal(data.Augment(0, False)(x, generator), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.gaussian(0), "train must be > 0, got 0"),
        (lambda: data.gaussian(labels="x"), "labels must be one of signs, normal, zero"),
        (lambda: data.synthetic_images(shape=(3, 2, 2)), r"shape must be \(C, S, S\) with S >= 4"),
        (lambda: data.synthetic_images(noise=-1.0), "noise must be finite and >= 0"),
        (lambda: data.Augment(-1), "crop must be >= 0, got -1"),
        (
            lambda: data.Augment()(torch.zeros(3, 4), torch.Generator()),
            r"x must be \(N, C, H, W\), got \(3, 4\)",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 1.5}, "train must be an int, got float"),
        ({"test": None}, "test must be an int, got NoneType"),
        ({"shape": 3}, "shape must be a list, got int"),
        ({"shape": (1, 8, 8.0)}, r"shape\[2\] must be an int, got float"),
        ({"classes": 2.5}, "classes must be an int, got float"),
        ({"noise": "a"}, "noise must be a number, got 'a'"),
        ({"seed": "a"}, "seed must be an int, got str"),
    ],
)
def test_wrong_types(wrong, message):
    with pytest.raises(TypeError, match=f"catapult_ext.data.synthetic_images: {message}"):
        data.synthetic_images(**wrong)


@pytest.mark.parametrize("name", ["gaussian", "synthetic_images", "teacher", "digits", "sums"])
@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_seeds_are_those_of_numpy(name, seed):
    message = rf"catapult_ext.data.{name}: seed must be from 0 to 2\^32 - 1, got {seed}"
    with pytest.raises(ValueError, match=message):
        getattr(data, name)(seed=seed)
