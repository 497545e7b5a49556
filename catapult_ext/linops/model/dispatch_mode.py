"""The base class of the modes that watch tensor operations below autograd."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """A dispatch mode that does not load torch's compiler.

    torch asks a mode whether to keep its frames from the compiler.  Where the answer is yes it
    imports the compiler on the first operation, which takes seconds.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
