from __future__ import annotations

import pytest
import torch
from torch import nn

from catapult_ext import probes
from catapult_ext.probes import observables


@pytest.mark.parametrize("inplace", [False, True])
def test_activity_counts_pre_activations_at_or_below_zero(inplace):
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(inplace=inplace), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
    x = torch.tensor([[1.0], [2.0], [-1.0]])
    outputs, found = probes.activity(model, x)
    assert torch.equal(outputs, model(x))
    # unit 0 is off on one of three samples, unit 1 on two, unit 2 on all
    assert found.inactive == pytest.approx(6 / 9)
    assert found.dead == pytest.approx(1 / 3)
    assert not model[1]._forward_hooks


def test_activity_reports_the_worst_layer_and_handles_images():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
        model[3].weight.fill_(-1.0)
        model[3].bias.zero_()
    _, found = probes.activity(model, torch.ones(3, 1, 2, 2))
    assert (found.inactive, found.worst_inactive, found.dead) == (0.5, 1.0, 1.0)


def test_no_one_sided_activation_gives_none():
    assert probes.activity(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), torch.ones(1, 2))[1] is None


def test_weight_norm_and_accuracy():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0]]))
        model.bias.fill_(4.0)
    assert probes.weight_norm(model) == 5.0
    outputs = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]])
    assert probes.accuracy(outputs, torch.eye(2)[[1, 1, 1]]) == pytest.approx(2 / 3)
    assert probes.accuracy(outputs, torch.tensor([1, 0, 1])) == 1.0
    assert probes.accuracy(outputs[:0], torch.eye(2)[:0]) is None


def test_hidden_width_ignores_the_outputs():
    assert probes.hidden_width(nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 50))) == 7
    assert probes.hidden_width(nn.Linear(3, 50)) == 1


def test_active_dropout_is_found_by_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    assert observables.active_dropout(model) == "1"
    assert observables.active_dropout(model.eval()) is None
