"""torch.library registration of the native ops: define + impl + fake.

``torch.library.custom_op`` costs 18 microseconds a call against 5 here, so it is not used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# a fragment: the modules may be removed from sys.modules and imported again, operations may not
_library = torch.library.Library("catapult", "FRAGMENT")


def register(schema: str, impl: Callable[..., object], fake: Callable[..., object]) -> None:
    """Define ``catapult::<schema>`` for CPU and CUDA tensors.

    Args:
        schema: torch schema, ``"gram(Tensor[] a, ...) -> Tensor"``.
        impl: allocates the outputs and calls ``_native.call``.
        fake: allocates outputs of the right shape, dtype and device, and nothing else.

    Raises:
        RuntimeError: another version of this package has defined the operation in this process.
    """
    name = schema[: schema.index("(")]
    if hasattr(torch.ops.catapult, name):  # by an earlier import of this package, which serves
        held = getattr(torch.ops.catapult, name).default._schema
        if held != torch._C.parse_schema(f"catapult::{schema}"):
            raise RuntimeError(
                f"catapult_ext.ops.{name}: another version of catapult_ext was imported in this "
                "process before; start Python again"
            )
        return
    _library.define(schema)
    arguments = getattr(torch.ops.catapult, name).default._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]
    for key in ("CPU", "CUDA"):
        _library.impl(name, _versioned(impl, written) if written else impl, key)
    torch.library.register_fake(f"catapult::{name}", fake, lib=_library)


def _versioned(impl: Callable[..., object], written: list[int]) -> Callable[..., object]:
    """``impl``, after which autograd knows that arguments ``written`` have changed."""

    def call(*args: torch.Tensor | None) -> object:
        out = impl(*args)
        for t in (args[i] for i in written):
            if t is not None and not t.is_inference():
                torch.autograd.graph.increment_version(t)
        return out

    return call
