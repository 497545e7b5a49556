"""The generated text of sums, and tokens as inputs of a data set."""

from __future__ import annotations

import re

import pytest
import torch

from catapult_ext import data
from catapult_ext.data.sums import CHARACTERS, number_name

NAMES = {number_name(n): n for n in range(100)}


def text(row):
    return "".join(CHARACTERS[i] for i in row)


def test_windows_of_true_sums():
    found = data.sums(20, 5, length=120)
    assert (found.x_train.shape, found.x_train.dtype) == ((20, 120), torch.int64)
    assert (found.y_test.shape, found.y_test.dtype) == ((5, 29), torch.float32)
    sentence = re.compile(r"\. ([a-z-]+) plus ([a-z-]+) is ([a-z-]+)\.")
    seen = [m for row in found.x_train for m in sentence.findall(text(row))]
    assert len(seen) >= 20
    assert all(NAMES[a] + NAMES[b] == NAMES[c] for a, b, c in seen)
    assert len({row.sum().item() for row in found.y_train}) == 1


def test_the_target_is_the_next_character():
    found = data.sums(40, 0, length=30)
    rows = {text(row): CHARACTERS[y.argmax()] for row, y in zip(*found.train, strict=True)}
    longer = {text(row) for row in data.sums(40, 0, length=31).x_train}
    known = [row for row in longer if row[:-1] in rows]
    assert all(rows[row[:-1]] == row[-1] for row in known)
    ends = [(row, y) for row, y in rows.items() if row.endswith(" plu")]
    assert all(y == "s" for _, y in ends)
    assert {len(row) for row in rows} == {30}


def test_one_seed_one_text():
    one, two = data.sums(8, 2, seed=1), data.named("sums", train=8, test=2, seed=1)
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != data.sums(8, 2, seed=2).fingerprint()
    with pytest.raises(ValueError, match="tokens of sums cannot be shifted or scaled"):
        data.named("sums", standardisation="global")


def test_tokens_are_inputs_of_a_data_set():
    x, y = torch.zeros(3, 4, dtype=torch.int64), torch.eye(3)
    found = data.Dataset("tokens", x, y, x[:0], y[:0])
    moved = found.to(torch.float64)
    assert (moved.x_train.dtype, moved.y_train.dtype) == (torch.int64, torch.float64)
    with pytest.raises(TypeError, match="x_train must have dtype float32, float64 or int64"):
        data.Dataset("tokens", x.int(), y, x[:0].int(), y[:0])
    with pytest.raises(TypeError, match="y_train must have dtype float32 or float64"):
        data.Dataset("tokens", x, y.long(), x[:0], y[:0].long())
    with pytest.raises(TypeError, match="y_test must have the dtype of y_train"):
        data.Dataset("tokens", x, y, x[:0], y[:0].double())
