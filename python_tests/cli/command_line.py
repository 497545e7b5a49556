"""The command line in this process, for the tests of this folder."""

import pytest

from catapult_ext import cli


def run(capsys, *arguments):
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err
