from typing import Any

from torch import Tensor

def build_info() -> dict[str, Any]: ...
def force_isa(name: str) -> None: ...
def tridiag_eigh(
    alpha: Tensor,
    beta: Tensor,
    eigenvalues: Tensor,
    first: Tensor,
    last: Tensor,
    device: int,
    stream: int,
    threads: int,
) -> None: ...
