"""Gradient descent is written once: no loop outside ``training`` takes gradients and moves weights.

Also the size of the experiments, as ``tools/count_statements.py`` counts it.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "catapult_ext"
GRADIENTS = {"grad", "backward"}
MOVES = {
    *("_foreach_add_", "_foreach_sub_", "_foreach_addcmul_", "addcmul_", "addcdiv_", "sub_"),
    *("step", "move", "vector_to_parameters"),
}
READS = {"vector_to_parameters"}  # also how a model is read at other weights
# Loops that iterate something else than one network: many stacked networks as one program, one
# number, and the oracle of the toy model; and loops in which an optimizer of torch makes the step.
NAMED = {
    ("experiments/edge_runs.py", "follow"),
    ("experiments/noisy_edge.py", "follow_batches"),
    ("experiments/reproduce/adam_spikes.py", "on_a_line"),
    ("experiments/stacked.py", "StackedDense.descend"),
    ("experiments/stacked_chain.py", "StackedChain.move"),
    ("reference/toy_gd.py", "run"),
}


def _calls(node: ast.AST) -> set[str]:
    """Names of everything called below a node, methods without their object."""
    found = set()
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
        if isinstance(call.func, ast.Attribute):
            found.add(call.func.attr)
        elif isinstance(call.func, ast.Name):
            found.add(call.func.id)
    return found


def _shown(loop: ast.For | ast.While) -> bool:
    """Whether a loop goes over the steps that ``training`` shows, which may read elsewhere."""
    return isinstance(loop, ast.For) and bool(_calls(loop.iter) & {"steps", "full_batch"})


def _subtracts(node: ast.AST) -> bool:
    """Whether an element of an iterable is reduced in place: ``for p in ...: p -= ...``."""
    return any(
        isinstance(n, ast.AugAssign)
        and isinstance(n.op, ast.Sub)
        and not isinstance(n.value, ast.Constant)
        for n in ast.walk(node)
    )


def descents(source: str) -> list[str]:
    """Functions with a loop that takes a gradient and moves, itself or through the module."""
    tree = ast.parse(source)
    functions = [
        n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    called = {f.name: set[str]() for f in functions}
    for f in functions:
        called[f.name] |= _calls(f) | ({"sub_"} if _subtracts(f) else set())
    found = []

    def reached(names: set[str]) -> set[str]:
        seen: set[str] = set()
        while names - seen:
            name = (names - seen).pop()
            seen.add(name)
            names = names | called.get(name, set())
        return seen

    def look(node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = path
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner = f"{path}.{child.name}".lstrip(".")
            if isinstance(child, (ast.For, ast.While)):
                body = ast.Module(child.body, [])
                names = reached(_calls(body) | ({"sub_"} if _subtracts(body) else set()))
                if names & GRADIENTS and names & (MOVES - READS if _shown(child) else MOVES):
                    found.append(inner)
            look(child, inner)

    look(tree, "")
    return sorted(set(found))


def test_descent_is_written_once():
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in descents(path.read_text())
    }
    inside = {one for one in found if one[0].startswith("training/")}
    assert inside == {("training/loop.py", "steps")}
    assert found - inside == NAMED


LOOPS = {
    "plain": """
def f(model, loss):
    for _ in range(3):
        g = torch.autograd.grad(loss(model), weights)
        torch._foreach_add_(weights, g, alpha=-0.1)
""",
    "by an optimizer": """
def f(model, loss, optimizer):
    while True:
        loss(model).backward()
        optimizer.step()
""",
    "in place": """
def f(model, loss):
    for _ in range(3):
        for p, g in zip(weights, torch.autograd.grad(loss(model), weights)):
            p -= 0.1 * g
""",
    "by a function": """
def move():
    torch._foreach_sub_(weights, torch.autograd.grad(loss(), weights))

def f():
    for _ in range(3):
        move()
""",
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_second_loop_is_found(name):
    assert descents(LOOPS[name]) == ["f"]
    assert (
        descents(LOOPS[name].replace("torch.autograd.grad(", "old(").replace("backward", "b")) == []
    )


def _counter():
    spec = importlib.util.spec_from_file_location("count", ROOT / "tools" / "count_statements.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_statements_are_counted_without_docstrings():
    text = (
        '"""A module."""\nimport a\n\n\ndef f():\n    """A function."""\n    if a:\n        a = 1\n'
    )
    assert _counter().statements(text) == 4
