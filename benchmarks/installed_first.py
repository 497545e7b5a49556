"""Import me where a checkout without a native module would shadow the installed package."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
if not list((_ROOT / "catapult_ext").glob("_C.*so")):
    # Not away: the other modules of `benchmarks` are found there.
    sys.path.sort(key=lambda path: Path(path or ".").resolve() == _ROOT)
