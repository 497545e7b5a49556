"""Models of the transformers package, made from small configurations, against brute force."""

import pytest
import torch
from linops import zoo

import catapult_ext as cx
from catapult_ext.testing.tolerances import assert_close as close

transformers = pytest.importorskip("transformers", reason="Transformers is not installed")


def gpt2(attention):
    config = transformers.GPT2Config(
        vocab_size=9, n_positions=6, n_embd=8, n_layer=2, n_head=2, attn_implementation=attention
    )
    tokens = torch.randint(9, (3, 5))
    x = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return transformers.GPT2LMHeadModel(config), x, lambda m, b: m(**b).logits[:, -1]


def vit(attention):
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=8,
        patch_size=4,
        num_labels=3,
        attn_implementation=attention,
    )
    x = {"pixel_values": torch.randn(3, 3, 8, 8)}
    return transformers.ViTForImageClassification(config), x, lambda m, b: m(**b).logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [gpt2, vit])
def test_operators(make, attention):
    torch.manual_seed(0)
    model, x, logits = make(attention)
    model = model.double().eval()
    x = zoo.cast(x, torch.float64)
    params = zoo.trainable(model)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(f, params, retain_graph=True)])
        for f in logits(model, x).reshape(-1)
    ]
    j = torch.stack(rows)
    kernel = cx.NTK(model, x, forward=logits)
    v = torch.randn(len(j), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    close(kernel @ v, j @ (j.T @ v))
    close(kernel @ v[:, 0], j @ (j.T @ v[:, 0]))
    close(kernel.dense(), j @ j.T)
    close(kernel.diagonal(), j.square().sum(1))
    close(kernel.trace(), j.square().sum())
    turned = {k: a.flip(0) for k, a in x.items()}
    n = len(next(iter(x.values())))
    flipped = j.reshape(n, -1, j.shape[1]).flip(0).reshape(j.shape)
    close(cx.NTK(model, x, turned, forward=logits).dense(), j @ flipped.T)
    loss = torch.nn.CrossEntropyLoss()
    data = (x, torch.arange(n) % 3)
    t = v[: len(j), 0] @ j
    f = logits(model, x).detach()
    h = torch.func.hessian(lambda f: loss(f, data[1]))(f).reshape(len(j), len(j))
    close(cx.GGN(model, loss, data, forward=logits) @ t, j.T @ (h @ (j @ t)))
    reverse = cx.Hessian(model, loss, data, forward=logits) @ t
    close(cx.Hessian(model, loss, data, forward=logits, samples_at_once=2) @ t, reverse)
