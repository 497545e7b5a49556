"""The character-level GPT and the small vision transformer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import catapult_ext as cx
from catapult_ext import data, models

TOKENS = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def gpt(**settings):
    return models.char_gpt(6, 11, **{"width": 8, "depth": 2, "seed": 3, **settings})


def vit(**settings):
    return models.small_vit(8, 5, in_channels=2, **{"width": 8, "depth": 2, "seed": 3, **settings})


@pytest.mark.parametrize(("make", "x", "outputs"), [(gpt, TOKENS, 11), (vit, IMAGES, 5)])
def test_shapes_and_parameterisations(make, x, outputs):
    """Both parameterisations are one function at the start; other parameters train it."""
    torch.manual_seed(9)
    before = torch.get_rng_state()
    standard, ntk = make()(x), make(parameterisation="ntk")(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert standard.shape == (3, outputs)
    torch.testing.assert_close(standard, ntk)
    assert standard.std() > 0.1
    assert not torch.equal(standard, make(seed=4)(x))
    assert torch.equal(standard, make()(x))
    with torch.device("cpu"):
        assert make(dtype=torch.float64)(x.double() if x.is_floating_point() else x).dtype


def test_attention_of_the_gpt_sees_what_came_before():
    net, changed = gpt(), TOKENS.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    with torch.no_grad():
        one, two = (net.blocks(net.characters(x)) for x in (TOKENS, changed))
    moved = (one - two).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False] * 3 + [True] * 3
    assert not torch.equal(net(TOKENS), net(changed))


def test_tokens_of_the_vit_are_patches():
    net = vit(depth=0, patch=4)
    with torch.no_grad():
        cut = functional.unfold(IMAGES, 4, stride=4).mT  # (N, patches, C p p)
        h = net.patches(cut) + net.places.weight
        torch.testing.assert_close(net(IMAGES), net.head(net.norm(h).mean(dim=1)))


def test_by_name():
    assert models.build("gpt", (6,), 11, width=4)(TOKENS).shape == (3, 11)
    assert models.build("vit", (2, 8, 8), 5, width=4)(IMAGES).shape == (3, 5)
    with pytest.raises(ValueError, match=r"gpt needs samples of shape \(T,\)"):
        models.build("gpt", (2, 8, 8), 5)
    with pytest.raises(ValueError, match=r"vit needs samples of shape \(C, S, S\)"):
        models.build("vit", (6,), 5)
    with pytest.raises(ValueError, match=r"name must be one of fc, .*, gpt, vit, got 'bert'"):
        models.build("bert", (6,), 5)


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (gpt, {"width": 7}, "char_gpt: width must be a multiple of heads 2, got 7"),
        (gpt, {"heads": 0}, "char_gpt: heads must be > 0, got 0"),
        (gpt, {"depth": -1}, "char_gpt: depth must be >= 0, got -1"),
        (vit, {"patch": 3}, "small_vit: patch must be a divisor of image_size 8, got 3"),
        (vit, {"init": "none"}, "small_vit: init of standard must be one of he, lecun"),
    ],
)
def test_wrong_sizes(make, wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)


def test_curvature_of_tokens():
    """The Gauss-Newton matrix of the GPT is J' H J, J by reverse mode."""
    net = gpt(width=4, depth=1, dtype=torch.float64)
    x, y = TOKENS, torch.tensor([1, 2, 3])
    found = cx.GGN(net, "cross_entropy", (x, y)).dense()
    names = [name for name, _ in net.named_parameters()]

    def outputs(*values):
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

    parts = torch.autograd.functional.jacobian(outputs, tuple(net.parameters()))
    J = torch.cat([part.reshape(33, -1) for part in parts], 1)
    p = net(x).softmax(dim=1).detach()
    H = torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p)) / 3
    torch.testing.assert_close(found, J.T @ H @ J)


def test_a_sweep_of_characters():
    found = data.sums(12, 4, length=6)
    net = models.char_gpt(6, found.outputs, width=4, depth=1)
    done = cx.sweep(net, found, c=(1.0, 1e4), steps=3, loss="cross_entropy", tol=0.1, top=1)
    assert [row["phase"] for row in done.rows] == ["lazy", "divergent"]
    assert done.rows[0]["loss_end"] < done.rows[0]["loss_start"]
    assert done.rows[0]["test_accuracy"] is not None
