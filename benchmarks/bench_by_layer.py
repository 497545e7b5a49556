"""Top eigenvalue and trace of every layer beside one top eigenvalue of the whole model."""

import pytest
import torch
from harness import Case
from torch import nn

import catapult_ext as cx

SAMPLES = (64, 128)


def resnet20(samples):
    """A ResNet-20 with running statistics of its data, images, labels, and 20 blocks.

    A block is a convolution with the batch norm behind it, or the last dense layer.
    """
    torch.manual_seed(0)
    model = cx.models.resnet(20, 10).to(memory_format=torch.channels_last)
    x = torch.randn(samples, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(30):
            model(x[:64])
    blocks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            blocks[next(reversed(blocks))].append(name)
        elif any(True for _ in module.parameters(recurse=False)):
            blocks[name] = [name]
    return model.eval(), (x, torch.randint(0, 10, (samples,))), blocks


@pytest.mark.parametrize("samples", SAMPLES)
def test_by_layer_of_a_resnet20(measure, quick, samples):
    if quick and samples > SAMPLES[0]:
        pytest.skip("large")
    model, data, blocks = resnet20(samples)
    assert len(blocks) == 20

    def layers():
        return cx.by_layer(model, "cross_entropy", data, blocks=blocks, tol=1e-2)

    def whole():
        return cx.eigsh(cx.GGN(model, "cross_entropy", data), tol=1e-2)

    def one_by_one():
        for params in blocks.values():
            cx.eigsh(cx.GGN(model, "cross_entropy", data, params=params), tol=1e-2)

    def check():
        found = layers()
        assert all(row["converged"] for row in found.rows)
        for name in ("0", "10.conv1", next(reversed(blocks))):
            block = cx.GGN(model, "cross_entropy", data, params=blocks[name])
            top = cx.eigsh(block, tol=1e-4).eigenvalues.item()
            assert abs(found[name]["values"][0] - top) <= 1e-2 * top
            assert abs(found[name]["trace"] - block.trace().item()) <= 1e-3 * found[name]["trace"]

    measure(
        Case(
            ours=layers,
            baselines={"top eigenvalue of the whole": whole}
            | ({"an operator a block": one_by_one} if samples == SAMPLES[0] else {}),
            check=check,
            target={"top eigenvalue of the whole": 1 / 5},
        )
    )
