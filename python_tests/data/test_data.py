from __future__ import annotations

import pytest
import torch

from catapult_ext import data


def test_digits_are_split_standardised_and_one_hot():
    d = data.digits()
    assert d.x_train.shape == (512, 64)
    assert d.x_test.shape == (1285, 64)
    assert d.x_train.mean().item() == pytest.approx(0, abs=1e-5)
    assert d.x_train.pow(2).mean().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(d.y_train.sum(dim=1), torch.ones(512))
    assert d.outputs == 10
    assert d.classes
    rows = {tuple(r.tolist()) for r in torch.cat((d.x_train, d.x_test))}
    assert len(rows) > 1790  # every image is there once (a few of the originals repeat)


def test_digits_labels_belong_to_their_images():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    label_of = {tuple(row): int(t) for row, t in zip(bunch.data, bunch.target, strict=True)}
    d = data.digits(train=50, test=20, standardisation="none", dtype=torch.float64)
    inputs, targets = torch.cat((d.x_train, d.x_test)), torch.cat((d.y_train, d.y_test))
    for x, y in zip(inputs, targets, strict=True):
        assert label_of[tuple((x * 16).tolist())] == int(y.argmax())


def test_size_28_is_the_enlarged_image_in_a_frame():
    small = data.digits(8, train=20, test=5, standardisation="none", flatten=False)
    large = data.digits(28, train=20, test=5, standardisation="none", flatten=False)
    assert large.x_train.shape == (20, 1, 28, 28)
    assert torch.equal(large.y_train, small.y_train)
    assert large.x_train[:, :, :4].abs().max() == 0
    inner = large.x_train[:, :, 4:24, 4:24]
    back = torch.nn.functional.interpolate(inner, size=8, mode="area")
    assert (back - small.x_train).abs().mean() < 0.1


def test_pixel_standardisation_leaves_constant_pixels_at_zero():
    d = data.digits(train=100, test=0, standardisation="pixel")
    spread = d.x_train.std(dim=0, correction=0)
    assert ((spread - 1).abs().lt(1e-4) | spread.eq(0)).all()
    assert d.x_test.shape == (0, 64)


def test_digits_of_two_classes():
    d = data.digits(train=40, test=10, classes=(8, 3), targets="signed")
    every = data.digits(train=1000, test=0, standardisation="none", flatten=False)
    assert d.y_train.shape == (40, 1)
    assert set(d.y_train[:, 0].tolist()) == {-1.0, 1.0}
    assert not d.classes
    hot = data.digits(train=40, test=10, classes=(8, 3))
    assert torch.equal(hot.y_train[:, 1] - hot.y_train[:, 0], d.y_train[:, 0])
    # The first eight of all digits is the first sample with target -1.
    first = every.x_train[every.y_train[:, 8] == 1]
    mine = data.digits(train=300, test=0, classes=(8, 3), targets="signed", standardisation="none")
    eights = mine.x_train[mine.y_train[:, 0] < 0]
    assert any(torch.equal(first[0].flatten(), e) for e in eights)
    with pytest.raises(ValueError, match="signed targets need two classes"):
        data.digits(targets="signed")
    with pytest.raises(ValueError, match=r"classes must be two or more distinct of 0\.\.9"):
        data.digits(classes=(3, 3))


def test_split_depends_on_the_seed_only():
    assert data.digits(seed=1).fingerprint() == data.digits(seed=1).fingerprint()
    assert data.digits(seed=1).fingerprint() != data.digits(seed=2).fingerprint()


@pytest.mark.parametrize("classes", [False, True])
def test_teacher(classes):
    d = data.teacher(40, 10, in_features=5, out_features=3, classes=classes, seed=4)
    assert (d.x_train.shape, d.y_train.shape, d.x_test.shape) == ((40, 5), (40, 3), (10, 5))
    assert d.classes is classes
    again = data.teacher(40, 10, in_features=5, out_features=3, classes=classes, seed=4)
    assert torch.equal(d.y_train, again.y_train)
    if not classes:
        noisy = data.teacher(40, 10, in_features=5, out_features=3, noise=0.1, seed=4)
        assert (noisy.y_train - d.y_train).std().item() == pytest.approx(0.1, rel=0.3)
        assert torch.equal(noisy.y_test, d.y_test)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.digits(16), "size must be 8 or 28, got 16"),
        (lambda: data.digits(train=0), "train must be in 1..1796, got 0"),
        (lambda: data.digits(test=2000), "test must be in 0..1285, got 2000"),
        (
            lambda: data.digits(standardisation="z"),
            "how must be one of global, channel, pixel, image, none",
        ),
        (lambda: data.teacher(0), "train must be > 0, got 0"),
        (lambda: data.teacher(noise=-1.0), "noise must be finite and >= 0, got -1.0"),
        (lambda: data.teacher(classes=True), "out_features must be >= 2, got 1"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dataset_refuses_what_cannot_be_trained_on():
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    with pytest.raises(TypeError, match="x_train must have dtype float32, float64 or int64"):
        data.as_dataset((x.int(), y), "sweep")
    with pytest.raises(TypeError, match="y_train must have the dtype of x_train"):
        data.as_dataset((x, y.double()), "sweep")
    with pytest.raises(ValueError, match=r"y_train must have shape \(4, O\), got \(3, 2\)"):
        data.as_dataset((x, y[:3]), "sweep")
    with pytest.raises(ValueError, match="must not be empty, got 0 samples"):
        data.as_dataset((x[:0], y[:0]), "sweep")
    with pytest.raises(ValueError, match="x_train must be finite"):
        data.as_dataset((x / 0, y), "sweep")
    with pytest.raises(ValueError, match=r"x_test must have samples of shape \(3,\)"):
        data.as_dataset((x, y, x[:, :2], y), "sweep")
    with pytest.raises(TypeError, match="data must be a Dataset"):
        data.as_dataset(x, "sweep")


def test_as_dataset_accepts_pairs_and_recognises_classes():
    x = torch.randn(4, 3)
    assert data.as_dataset((x, torch.randn(4)), "sweep").y_train.shape == (4, 1)
    assert not data.as_dataset((x, torch.randn(4, 2)), "sweep").classes
    assert data.as_dataset((x, torch.eye(4)), "sweep").classes


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RuntimeError, match=r"pip install 'catapult_ext\[experiments\]'"):
        data.digits()
