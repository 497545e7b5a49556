"""The comparisons that the other tests rest on can fail."""

import pytest
import torch

from catapult_ext.testing.tolerances import assert_close

EXACT = torch.tensor([1.0, -200.0], dtype=torch.float64)


def test_close_enough_passes():
    assert_close(EXACT + 1.9e-8, EXACT)  # 1e-10 of the largest entry
    assert_close(EXACT + 0.5, EXACT, tolerance=0.1, scale=10.0)
    assert_close(torch.zeros(3), torch.zeros(3))


@pytest.mark.parametrize(
    ("got", "options"),
    [
        (EXACT + 2.1e-8, {}),
        (EXACT + 0.5, {"tolerance": 1e-3}),
        (EXACT + 1e-9, {"scale": 1.0}),
        (EXACT * torch.nan, {}),
        (EXACT * torch.inf, {"tolerance": 1.0}),
        (EXACT[:, None], {}),
        (EXACT[:1], {}),
    ],
)
def test_what_is_not_close_fails(got, options):
    with pytest.raises(AssertionError):
        assert_close(got, EXACT, **options)
