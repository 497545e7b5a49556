"""Write a kernel, be killed again and again, and resume: write_kernel.py FILE ENGINE KILLS SEED.

Each child kills itself before one line, drawn from a seed, of the modules that write the file.
Children are forked, so that none has to import torch again.  Prints how many of them died.
"""

import os
import random
import signal
import sys
from pathlib import Path

import torch
from torch import nn

import catapult_ext as cx
from catapult_ext import _store as store
from catapult_ext.linops.explicit import kernel_file, tiles

FILES = {module.__file__ for module in (kernel_file, tiles, store)}
PURE = ("clean", "<genexpr>", "<dictcomp>", "<listcomp>")  # many lines that write nothing


def write(path, engine):
    """In tiles of five samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3))
    cx.NTK(model, torch.randn(14, 5), engine=engine).dense(file=path)


def traced(work, at):
    """The lines of FILES that ``work`` runs; ``at(number, line)`` is called before each."""
    count = 0

    def on_line(frame, event, _):
        nonlocal count
        if event == "line":
            count += 1
            at(count, frame.f_lineno)
        return on_line

    def on_call(frame, *_):
        code = frame.f_code
        return on_line if code.co_filename in FILES and code.co_name not in PURE else None

    sys.settrace(on_call)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


def attempt(path, engine, number):
    """Write until line ``number``; true if the file was complete before that."""

    def at(count, line):
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        traced(lambda: write(path, engine), at)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    if code == 0:
        assert Path(path).read_bytes() == Path(path + ".whole").read_bytes()
    return code == 0


def main(path, engine, kills, seed):
    cut = tiles.Tiles._cut
    tiles.Tiles._cut = lambda self: {**cut(self), "edge": 5}
    torch.set_num_threads(1)  # no pool of threads that a fork would lose
    lines = traced(lambda: write(path + ".whole", engine), lambda *_: None)
    moments = random.Random(seed)
    died = 0
    while died < int(kills):
        number = moments.randint(1, lines)
        if attempt(path, engine, number):
            for left in (path, path + ".json"):
                os.unlink(left)
        else:
            died += 1
    assert attempt(path, engine, 0)
    print(died)


if __name__ == "__main__":
    main(*sys.argv[1:])
