"""A node whose clock is ahead: it is told, nothing acknowledged is lost, no restore goes to another
moment than was meant, and backups go on when it is right again.
"""

from __future__ import annotations

import time

import pytest

from elsapg.services import status, verify
from elsapg.services.deployment import Deployment
from tests.chaos.faults import Faults, archive_all, wait_for
from tests.chaos.writes import Access
from tests.recovery.archive_stack import ArchiveStack
from tests.restore.commands import iso, restore
from tests.restore.data import Writer, present, writing
from tests.restore.shifted import Clock, shifted

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(2400)]

HOUR, TEN_MINUTES = 3600, 600
PREFIX = f"clock{int(time.time())}"


def _told(deployment: Deployment) -> list[str]:
    return [p for p in status.gather(deployment).problems if "the clock of" in p]


def _more(writer: Writer, count: int = 20) -> None:
    """Wait until so many more rows are acknowledged."""
    wanted = len(writer.committed_before(time.time())) + count
    wait_for(lambda: len(writer.committed_before(time.time())) >= wanted, "rows", 60)


def test_a_clock_that_is_ahead(filled: Deployment, doors: Access, faults: Faults) -> None:
    wrong = faults.wait_healthy().sync_standby
    with shifted(faults, wrong) as clock:
        assert not _told(filled)
        clock.set_off(HOUR)
        wait_for(lambda: _told(filled), "status tells of the clock", 30)
        # Two of its containers were just made again.
        found = verify.settled(filled, 60)
        assert {check.name for check in found.failures} == {"test_the_clocks_agree"}
        _an_hour(filled, doors, faults, clock, wrong)
        clock.set_off(TEN_MINUTES)
        wait_for(lambda: _told(filled), "status tells of the clock", 30)
        _ten_minutes(filled, clock)
    faults.wait_healthy()
    wait_for(lambda: not status.gather(filled).problems, "a healthy stack", 240, 1)


def _an_hour(
    deployment: Deployment, doors: Access, faults: Faults, clock: Clock, wrong: str
) -> None:
    """That node leads: S3 refuses its WAL, which waits for the clock, and goes nowhere else."""
    with writing(doors, PREFIX) as writer:
        _more(writer)
        faults.switchover()
        assert faults.wait_healthy().leader == wrong
        _more(writer)
        before = present(deployment, PREFIX)
        ArchiveStack(deployment).elsapg("restore", "mark", f"{PREFIX}-mark")
        marked_at = time.time()
        _more(writer)
        wait_for(
            lambda: any("WAL archiving fails" in p for p in status.gather(deployment).problems),
            "status tells of the archive",
            60,
        )
        refused = restore(deployment, "--to", iso(time.time()), code=2)
        assert f"the clock of {wrong} is" in refused and "use an LSN or a mark" in refused
        refused = restore(deployment, "--to", f"{PREFIX}-mark", code=2)
        assert "of which nothing is in the archive yet" in refused
        clock.set_off(0)
        wait_for(lambda: not _told(deployment), "the clock is right", 30)
        archive_all(deployment, 180)
    assert set(writer.committed_before(time.time())) <= present(deployment, PREFIX)
    restore(deployment, "--to", f"{PREFIX}-mark", "--no-verify")
    after = present(deployment, PREFIX)
    assert before <= after
    assert writer.begun_after(marked_at) and not writer.begun_after(marked_at) & after


def _ten_minutes(deployment: Deployment, clock: Clock) -> None:
    """S3 takes what it signs. When the clock is right again, the last backup is of the future."""
    archive_all(deployment)
    ArchiveStack(deployment).elsapg("backup", "now")
    clock.set_off(0)
    wait_for(lambda: not _told(deployment), "the clock is right", 30)
    ArchiveStack(deployment).elsapg("backup", "now")
