"""Text for language models: sums of numbers in English words, read character by character.

It is generated, so that nothing is downloaded and a seed gives the same text everywhere: "three
plus nineteen is twenty-two. forty plus six is forty-six. ". Letters within words are learnt first,
the words of a sum later, the sums themselves last.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from catapult_ext import _validate as v
from catapult_ext.data.dataset import Dataset
from catapult_ext.data.prepare import random_state

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
CHARACTERS = " -." + "".join(chr(ord("a") + i) for i in range(26))
LARGEST = 49  # summand, so that every sum has a name below one hundred


def number_name(n: int) -> str:
    """The English name of 0 <= n < 100: ``forty-six``."""
    if n < 20:
        return _ONES[n]
    tens, ones = divmod(n, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


def sums(
    train: int = 512,
    test: int = 512,
    *,
    length: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Windows of ``length`` characters of the text of sums, and the character that follows each.

    Args:
        train: number of training windows N, >= 1.
        test: number of test windows, of text that goes on from there.
        length: characters T of a window.
        seed: seed of the numbers and of where windows begin (NumPy's ``RandomState``).
        dtype: dtype of the targets, float32 or float64.

    Returns:
        Inputs (N, T), int64: places in ``data.sums.CHARACTERS``; targets (N, 29), one-hot.

    Raises:
        ValueError: for sizes < 1.

    Examples:
        >>> cx.data.sums(4, 0, length=16).x_train.shape
        torch.Size([4, 16])
    """
    where = "data.sums"
    v.integers(where, train=train, test=test, length=length)
    v.require(train > 0, where, "train must be > 0", train)
    v.require(test >= 0, where, "test must be >= 0", test)
    v.require(length > 0, where, "length must be > 0", length)
    rng = random_state(where, seed)
    place = {character: i for i, character in enumerate(CHARACTERS)}

    def windows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        written: list[int] = []
        while len(written) < 2 * count + length:  # a window begins at every other place or so
            a, b = rng.randint(0, LARGEST + 1, 2)
            text = f"{number_name(a)} plus {number_name(b)} is {number_name(a + b)}. "
            written.extend(place[character] for character in text)
        begin = rng.permutation(len(written) - length)[:count]
        held = np.array(written)
        x = torch.from_numpy(held[begin[:, None] + np.arange(length)]).long()
        following = torch.from_numpy(held[begin + length]).long()
        return x, functional.one_hot(following, len(CHARACTERS)).to(dtype)

    return Dataset("sums in words", *windows(train), *windows(test))
