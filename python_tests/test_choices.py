"""Options that take one of a few words: their types list the words that the checks accept."""

import typing

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.linops.engines.choose import Options
from catapult_ext.models import resnet
from catapult_ext.toy import noise_plane, simulate

NET = nn.Linear(3, 2)
DATA = torch.ones(4, 3), torch.ones(4, 2)

CASES = {
    "which": (cx.eigsh, lambda word: cx.eigsh(torch.eye(3), which=word)),
    "method": (
        cx.solve,
        lambda word: cx.solve(torch.eye(3), torch.ones(3), method=word),
    ),
    "precision": (cx.eigsh, lambda word: cx.eigsh(torch.eye(3), precision=word)),
    "quantity": (
        cx.CurvatureTracker.__init__,
        lambda word: cx.CurvatureTracker(NET, "mse", DATA, quantity=word),
    ),
    "batch_stats": (Options, lambda word: cx.GGN(NET, "half_mse", DATA, batch_stats=word)),
    "dropout": (Options, lambda word: cx.GGN(NET, "half_mse", DATA, dropout=word)),
    "norm": (resnet, lambda word: resnet(8, 2, norm=word)),
    "parameterisation": (resnet, lambda word: resnet(8, 2, parameterisation=word)),
    "form": (
        simulate,
        lambda word: simulate([0.1], width=4, x=[[1.0]], y=[0.0], steps=1, form=word),
    ),
    "noise": (noise_plane, lambda word: noise_plane(resolution=2, beta=(0, 0.5), noise=word)),
    "targets": (cx.data.digits, lambda word: cx.data.digits(train=8, classes=(0, 1), targets=word)),
}


def words(of, name):
    hint = typing.get_type_hints(of)[name]
    literals = [hint, *typing.get_args(hint)]
    return [
        w for t in literals if typing.get_origin(t) is typing.Literal for w in typing.get_args(t)
    ]


@pytest.mark.parametrize("name", CASES)
def test_listed_words_are_taken_and_others_refused(name):
    if name == "targets":
        pytest.importorskip("sklearn")
    of, call = CASES[name]
    listed = words(of, name)
    assert listed
    for word in listed:
        call(word)
    with pytest.raises(ValueError, match=r"must be|refuses|one of"):
        call("nonsense")
