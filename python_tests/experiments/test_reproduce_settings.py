"""Every setting of every experiment is checked before anything is computed or written."""

from __future__ import annotations

import dataclasses
import math

import pytest

from catapult_ext.experiments import reproduce as rp
from catapult_ext.experiments.reproduce.settings import check, setting

RATES = "one or more finite numbers > 0, distinct in six digits"


def refused(name, key, value, wanted, kind, out=None):
    with pytest.raises(kind) as error:
        rp.reproduce(name, "smoke", out=out, **{key: value})
    told = f"catapult_ext.reproduce: {key} of {name} must be {wanted}, got {value!r}"
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("name", "key", "values", "wanted"),
    [
        ("fc-phases", "seeds", (0, -1), "an int >= 1"),
        ("fc-phases", "c", ((0, 3), (), (math.inf,), (3, 3), (-1, 3), (math.nan,)), RATES),
        ("fc-phases", "c", ((3, 3.0000001), (10**400,)), RATES),
        ("fc-phases", "probe_samples", (-3, 0), "an int >= 1 or None"),
        ("fc-phases", "test", (-1,), "an int >= 0 or None"),
        ("fc-phases", "read_at", (-1, 0, math.inf), "a finite number > 0"),
        ("c-act-table", "factor", (1, 0.5), "a finite number > 1"),
        ("c-act-table", "low", (0,), "a finite number > 0"),
        ("c-act-table", "activations", (("relu", "relu"), ()), "one or more distinct words"),
        ("cnn-fixed-steps", "l2", (-1e-3,), "a finite number >= 0"),
        ("progressive-sharpening", "every", (0,), "an int >= 1"),
        ("progressive-sharpening", "momentum", (0, 1.0), "a finite number > 0 and < 1"),
        (
            "progressive-sharpening",
            "pair",
            ((3,), (3, 3), (1, 2, 3), (-1, 2)),
            "2 distinct ints >= 0",
        ),
        ("warmup", "warmups", ((0, 4), (4, 1)), "one or more distinct ints >= 1, ascending"),
        ("quadratic-models", "c", ((2.4, 2.8),), f"{RATES}, one of them < 2"),
        ("quadratic-models", "test", (0,), "an int >= 1 or None"),
    ],
)
def test_values_out_of_range(name, key, values, wanted, tmp_path):
    for value in values:
        refused(name, key, value, wanted, ValueError, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "key", "values", "wanted"),
    [
        ("fc-phases", "seeds", (None, True, 2.0), "an int >= 1"),
        ("fc-phases", "batch", ("abc", True), "an int >= 1 or None"),
        ("fc-phases", "c", (3, "3", ("3",), (True,), None), RATES),
        ("fc-phases", "loss", (None, 1), "a word"),
        ("cnn-fixed-steps", "flip", (1,), "True or False"),
    ],
)
def test_values_of_another_type(name, key, values, wanted):
    for value in values:
        refused(name, key, value, wanted, TypeError)


def test_every_scale_of_every_experiment_passes():
    for name in rp.names():
        for held in rp.experiment(name).settings.values():
            check(name, held)
            for field in dataclasses.fields(held):  # whatever its annotation, some value must fail
                with pytest.raises((TypeError, ValueError), match=f"{field.name} of {name} must"):
                    check(name, dataclasses.replace(held, **{field.name: object()}))


def test_a_list_is_taken_as_a_tuple():
    done = rp.reproduce("fc-phases", "smoke", c=[1.0], seeds=1, steps=2)
    assert done.settings.c == (1.0,)


def test_bounds_of_any_sign():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        x: tuple[float, ...] = setting((-1.0, 0.0), above=-2, below=2, ascending=True)

    check("made-up", Settings())
    for x in ((-2.0, 0.0), (2.0,), (1.0, 0.0)):
        with pytest.raises(ValueError, match=r"x of made-up must be .* > -2 and < 2, distinct"):
            check("made-up", Settings(x))


def test_networks_without_curvature_are_named():
    for name in ("c-act-table", "warmup"):
        with pytest.raises(ValueError, match=r"reproduce: .* must be > 0 \(dead units\?\), got"):
            rp.reproduce(name, "smoke", width=1, seeds=2)
    with pytest.raises(ValueError, match=r"sharpness must be > 0 \(constant inputs\?\), got"):
        rp.reproduce("progressive-sharpening", "smoke", train=1)


def test_a_search_ends_where_rounding_hides_the_tolerated_rise():
    small = {"exponents": (1.0,), "width": 8, "train": 12, "test": 0, "batch": 6, "steps": 2}
    done = rp.reproduce("warmup", "smoke", delta=1e-15, **small)
    assert done.outcome.tables["search"][0]["passes"] < 100
