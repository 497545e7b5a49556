"""Every public function and class has an example in its docstring, and the examples are run."""

import doctest
import importlib
import inspect

import pytest
import torch
from torch import nn

import catapult_ext as cx

MODULES = (
    "catapult_ext",
    "catapult_ext.data",
    "catapult_ext.experiments",
    "catapult_ext.linops",
    "catapult_ext.losses",
    "catapult_ext.models",
    "catapult_ext.ops",
    "catapult_ext.probes",
    "catapult_ext.runs",
    "catapult_ext.systems",
    "catapult_ext.toy",
    "catapult_ext.training",
)
# Bases, errors, and parts of results or loops whose use the example of another name shows.
SHOWN_ELSEWHERE = {
    "Activity",
    "AutogradHessian",
    "CheckpointError",
    "DiagonalFactor",
    "EdgeRow",
    "Evidence",
    "KernelFileError",
    "Linearization",
    "OutputFactor",
    "OutputHessian",
    "RankOneFactor",
    "RunFolder",
    "RunFolderError",
    "SoftmaxFactor",
    "StackedDual",
    "StackedOperator",
    "StackedRow",
    "Step",
    "Verdict",
    "checked_reduction",
    "drawn",
    "epochs",
    "lanczos_step",
    "ntk_matvec",
    "register_engine",
    "run",
    "steps",
    "update_digest",
    "whole",
}
NEEDS = {"digits": "sklearn", "run_demo": "sklearn"}


def public():
    found = {}
    for module in MODULES:
        held = importlib.import_module(module)
        for name in held.__all__:
            value = getattr(held, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.setdefault(name, value)
    return found


def test_the_list_of_names_without_an_example_is_short_and_true():
    bare = {n for n, value in public().items() if ">>>" not in (value.__doc__ or "")}
    assert bare - {"CurvatureTracker"} == SHOWN_ELSEWHERE


@pytest.mark.parametrize("name", sorted(public().keys() - SHOWN_ELSEWHERE))
def test_example_runs(name, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = inspect.getdoc(public()[name]) or ""
    given = {"cx": cx, "torch": torch, "nn": nn}
    example = doctest.DocTestParser().get_doctest(text, given, name, None, 0)
    failures: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=failures.append)
    assert not failures, "".join(failures)
