"""The first errors of a new user: each names the function, what is needed, what came, a way out."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import catapult_ext as cx

TOKENS = torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))


class LanguageModel(nn.Module):
    """As those of transformers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, input_ids, labels=None):
        return {"logits": self.head(self.embed(input_ids).tanh())}


def pixels():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 1))


def shuffled():
    x = torch.randn(64, 3)
    data = list(zip(x, x[:, :2], strict=True))
    loader = DataLoader(data, batch_size=8, shuffle=True)
    operator = cx.StreamedGGN(nn.Linear(3, 2), "mse", loader)
    return operator @ torch.ones(operator.shape[0])


def groups():
    """AdamW without state: two groups, decay and none, as the Trainer makes them."""
    model = pixels()
    parts = {0.01: [], 0.0: []}
    for p in model.parameters():
        parts[0.01 if p.dim() > 1 else 0.0].append(p)
    optimizer = torch.optim.AdamW([{"params": p, "weight_decay": w} for w, p in parts.items()])
    labels = torch.randint(2, (3, 5, 5))
    return cx.learning_rate_window(model, "cross_entropy", (IMAGES, labels), optimizer)


# what was tried, the kind of error, and its function, requirement, value and way out
ERRORS = {
    "tokens with labels of another shape": (
        lambda: cx.GGN(LanguageModel(), "cross_entropy", (TOKENS, TOKENS[:, 1:])),
        ValueError,
        ("CrossEntropyLoss", r"labels must have shape .*\(4, 6\)", r"got \(4, 5\)", "forward="),
    ),
    "a dictionary without labels": (
        lambda: cx.GGN(LanguageModel(), "cross_entropy", {"input_ids": TOKENS}),
        TypeError,
        ("GGN", "must hold labels in a field", "got dict with input_ids", r"pair \(x, y\)"),
    ),
    "a dictionary without labels, to the model's own loss": (
        lambda: cx.Hessian(LanguageModel(), None, {"input_ids": TOKENS}),
        TypeError,
        ("Hessian", "the loss that the model returns", r"got dict \(logits\)", "pass loss="),
    ),
    "pixels with one label an image": (
        lambda: cx.GGN(pixels(), "cross_entropy", (IMAGES, torch.zeros(3, dtype=torch.int64))),
        ValueError,
        ("CrossEntropyLoss", r"labels must have shape \(3, 5, 5\)", r"got \(3,\)", "forward="),
    ),
    "labels with the default loss": (
        lambda: cx.GGN(nn.Linear(3, 2), "half_mse", (torch.ones(2, 3), torch.tensor([0, 1]))),
        ValueError,
        ("half_mse", "shape of the outputs", r"got \(2,\)", "loss='cross_entropy'"),
    ),
    "AdamW in groups": (
        groups,
        ValueError,
        ("learning_rate_window|optimizer", "must", "got", "burn_in|groups"),
    ),
    "a shuffled loader": (
        shuffled,
        RuntimeError,
        ("StreamedGGN", "changed between two passes", "another one", "turn off shuffling"),
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_reads(case):
    tried, kind, texts = ERRORS[case]
    with pytest.raises(kind, match=r"^catapult_ext") as caught:
        tried()
    for text in texts:
        assert re.search(text, str(caught.value)), (text, str(caught.value))


class Autocast(LanguageModel):
    """As accelerate prepares a model for bf16 training."""

    def forward(self, input_ids, labels=None):
        with torch.autocast("cpu", torch.bfloat16):
            logits = super().forward(input_ids)["logits"].float()
        following = input_ids[:, 1:].flatten()
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), following)
        return {"loss": loss, "logits": logits}


def test_training_in_bfloat16_works():
    batch = {"input_ids": TOKENS, "labels": TOKENS}
    model = Autocast()
    plain = LanguageModel().double()  # the same weights, in float64
    following = torch.nn.functional.pad(TOKENS[:, 1:], (0, 1), value=-100)
    exact = cx.eigsh(cx.GGN(plain, "cross_entropy", (TOKENS, following))).eigenvalues.item()
    near = pytest.approx(exact, rel=2e-2)  # bfloat16 has three digits
    assert cx.eigsh(cx.GGN(model, "cross_entropy", batch)).eigenvalues.item() == near
    assert cx.learning_rate_window(model, "cross_entropy", batch).lambda0 == near
    with cx.CurvatureTracker(model, "cross_entropy", batch) as tracker:
        pass
    assert tracker.probes[0]["values"][0] == near


def test_pixels_work():
    labels = torch.randint(2, (3, 5, 5), generator=torch.Generator().manual_seed(1))
    model = pixels()
    operator = cx.GGN(model, "cross_entropy", (IMAGES, labels))
    rows = cx.GGN(
        model,
        "cross_entropy",
        (IMAGES, labels.flatten()),
        forward=lambda model, x: model(x).permute(0, 2, 3, 1).flatten(0, 2),
    )
    torch.testing.assert_close(operator.dense(), rows.dense())


def test_a_shuffled_loader_is_read_once_elsewhere():
    x = torch.randn(16, 3, dtype=torch.float64)
    loader = DataLoader(list(zip(x, x[:, :2], strict=True)), batch_size=4, shuffle=True)
    model = nn.Linear(3, 2).double()
    read, whole = (cx.GGN(model, "mse", data).dense() for data in (loader, (x, x[:, :2])))
    torch.testing.assert_close(read, whole)
