"""JAX contenders: a worker in the second environment, spoken to over pipes; it times itself."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import Answer

_worker: subprocess.Popen | None = None
python = os.environ.get("PEERS_JAX_PYTHON", "")


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    global _worker
    if not python:
        raise RuntimeError("no JAX environment (see benchmarks/peers/setup)")
    if _worker is None:
        threads = torch.get_num_threads()
        flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
        _worker = subprocess.Popen(
            [python, str(Path(__file__).with_name("jax_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ, XLA_FLAGS=flags, TF_CPP_MIN_LOG_LEVEL="3", JAX_PLATFORMS="cpu"),
        )
    assert _worker.stdin is not None
    assert _worker.stdout is not None
    data = pickle.dumps(request)
    _worker.stdin.write(struct.pack("<q", len(data)) + data)
    _worker.stdin.flush()
    head = _worker.stdout.read(8)
    if len(head) < 8:
        raise RuntimeError("the JAX worker ended")
    answer = pickle.loads(_worker.stdout.read(struct.unpack("<q", head)[0]))
    if "problem" in answer:
        raise RuntimeError(answer["problem"])
    return answer


def remote(job: str, **arguments: Any) -> Callable[[int], Answer]:
    """A call that the worker prepares at its first use, then repeats on request."""
    prepared: dict[str, int] = {}

    def call(case: int) -> Answer:
        if not prepared:
            prepared["id"] = _ask({"prepare": job, "arguments": arguments})["id"]
        answer = _ask({"run": prepared["id"]})
        return answer["seconds"], torch.from_numpy(answer["result"]), answer["peak"]

    return call
