"""Spreads the tests over workers: `pytest -p tests.spread -n 2`.

Tests that share a stack stay together, so that it is made once, and gone when the next one comes.
The work is given out in the order of the command line: name the longest first.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

SHARED = {"chaos", "kubernetes", "recovery", "restore", "target", "verify"}


def together(nodeid: str) -> str:
    """What a test stays together with: those of its folder if they share a stack, or its file."""
    path = PurePosixPath(nodeid.partition("::")[0])
    return str(path.parent if path.parent.name in SHARED else path)


class Scheduling(LoadScopeScheduling):
    """xdist's own, by what shares a stack."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Called by xdist."""
    config.option.loadscopereorder = False
    return Scheduling(config, log)
