"""What a newcomer types first, where the answer used to mislead."""

import numpy as np
import pytest
import torch

import catapult_ext as cx
from catapult_ext.runs.report import _table

NET = torch.nn.Linear(3, 2)
DATA = torch.ones(4, 3), torch.ones(4, 2)


@pytest.mark.parametrize("kind", ["GGN", "Hessian", "NTK"])
def test_an_operator_is_no_array_of_numpy(kind):
    """Point 6: it was an array of one object."""
    made = getattr(cx, kind)
    operator = made(NET, DATA[0]) if kind == "NTK" else made(NET, "half_mse", DATA)
    for convert in (np.asarray, np.array, torch.as_tensor):
        with pytest.raises((TypeError, RuntimeError), match=r"dense|not infer"):
            convert(operator)
    with pytest.raises(TypeError, match=rf"catapult_ext\.{kind}: is no array: \.dense\(\) writes"):
        np.asarray(operator)
    assert np.asarray(operator.dense()).shape == operator.shape


def test_an_unknown_setting_of_a_sweep_is_named():
    """Point 28: it was an error of SweepConfig.__init__."""
    text = r"catapult_ext\.sweep: settings are c, eta, steps, .* got 'linearized' \(did you mean"
    with pytest.raises(TypeError, match=text):
        cx.sweep(NET, DATA, c=[0.5], linearized=True)


def test_labels_may_be_classes_in_a_sweep():
    """Point 12: cross entropy refused integer classes."""
    found = cx.sweep(
        NET, (DATA[0], torch.tensor([0, 1, 0, 1])), eta=[0.1], steps=2, loss="cross_entropy"
    )
    assert len(found.records) == 1


def test_heads_of_tables_in_reports_have_a_scope():
    """Point 25."""
    page = _table([{"phase": "lazy", "a<b": "1"}])
    assert '<th scope="col">phase</th>' in page
    assert '<th scope="col">a&lt;b</th>' in page
