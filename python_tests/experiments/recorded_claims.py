"""A pytest plugin: what every function that makes a claim decided while the tests ran.

``-p experiments.recorded_claims``; a JSON object goes to the file ``CATAPULT_CLAIMS``.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from pathlib import Path

from catapult_ext.experiments.reproduce.outcome import Claim

SEEN: dict[str, set[bool | None]] = collections.defaultdict(set)
_init = Claim.__init__


def _recorded(self, *arguments, **named):
    _init(self, *arguments, **named)
    frame = sys._getframe(1)
    while frame.f_code.co_name.startswith("<"):  # a list comprehension in the function
        frame = frame.f_back
    SEEN[f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"].add(self.holds)


def pytest_configure():
    Claim.__init__ = _recorded


def pytest_unconfigure():
    found = {name: sorted(map(str, held)) for name, held in SEEN.items()}
    Path(os.environ["CATAPULT_CLAIMS"]).write_text(json.dumps(found))
