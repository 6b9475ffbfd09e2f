"""`elsapg switchover` under writes: no transaction fails, and no pool stays paused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos import proof
from tests.chaos.faults import Faults, Healthy, wait_for
from tests.chaos.writes import ContinuousWrites

pytestmark = [pytest.mark.docker, pytest.mark.slow]

UnderWrites = Callable[..., Any]

# Whoever is left alone with a pause ends it at once; by its own clock it would after 20 s.
RESUMED_S = 15.0


@proof.twice
def test_switchover_fails_no_transaction(faults: Faults, under_writes: UnderWrites) -> None:
    def act(_state: Healthy, _writes: ContinuousWrites) -> None:
        faults.switchover()

    before = faults.wait_healthy()
    report, after = under_writes(act)
    assert after.leader == before.sync_standby
    assert faults.paused_pools() == []
    proof.unnoticed(report)


@pytest.mark.parametrize("after_pause_s", [0.0, 0.4, 1.2])
def test_switchover_killed_in_the_middle(
    faults: Faults, under_writes: UnderWrites, after_pause_s: float
) -> None:
    """SIGKILL to the command at several moments after the pools are paused: they resume at once,
    whether the switchover itself still happens or not."""

    def act(_state: Healthy, _writes: ContinuousWrites) -> None:
        # The pause lasts a second or two, and a console's answer takes a moment: it may be missed.
        assert any(_killed_in_its_pause(faults, after_pause_s) for _ in range(4))
        wait_for(lambda: not faults.paused_pools(), "every pool is resumed", RESUMED_S, pause=0.1)

    under_writes(act)
    assert faults.paused_pools() == []


def _killed_in_its_pause(faults: Faults, after_pause_s: float) -> bool:
    """Begin one, and kill it so long after a pool is paused; False if no pause was seen."""
    process = faults.elsapg("switchover")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("switching over"), line + process.stdout.read()
        seen = wait_for(
            lambda: bool(faults.paused_pools()) or (process.poll() is not None and "over"),
            "a pool is paused",
            60,
            pause=0.02,
        )
        time.sleep(after_pause_s if seen is True else 0)
    finally:
        process.kill()
        process.communicate(timeout=30)
    if seen is not True:
        faults.wait_healthy()
    return seen is True
