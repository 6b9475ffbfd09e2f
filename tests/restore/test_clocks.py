"""A node whose clock is an hour ahead: it is told, nothing acknowledged is lost, no restore goes to
another moment than was meant, and backups go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from elsapg.services import status
from elsapg.services.deployment import Deployment
from tests.chaos.faults import Faults, wait_for
from tests.chaos.writes import Access
from tests.restore.commands import iso, restore
from tests.restore.data import Writer, present, writing
from tests.restore.shifted import shifted
from tests.stacks import elsapg

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(2400)]

HOUR = 3600
PREFIX = f"clock{int(time.time())}"


@pytest.fixture
def faults(deployment: Deployment) -> Iterator[Faults]:
    found = Faults(deployment)
    yield found
    found.close()


def _told(deployment: Deployment) -> list[str]:
    return [p for p in status.gather(deployment).problems if "the clock of" in p]


def _red(deployment: Deployment) -> set[str]:
    done = elsapg(deployment.root, "verify", "--json", "--stack", deployment.stack, timeout=600)
    checks = json.loads(done.stdout)["checks"]
    return {check["name"] for check in checks if check["outcome"] != "passed"}


def _more(writer: Writer, count: int = 20) -> None:
    """Wait until so many more rows are acknowledged."""
    wanted = len(writer.committed_before(time.time())) + count
    wait_for(lambda: len(writer.committed_before(time.time())) >= wanted, "rows", 60)


def test_an_hour_ahead(filled: Deployment, doors: Access, faults: Faults) -> None:
    deployment = filled
    wrong = faults.wait_healthy().sync_standby
    with shifted(faults, wrong) as clock:
        assert not _told(deployment)
        clock.set_off(HOUR)
        wait_for(lambda: _told(deployment), "status tells of the clock", 30)
        assert _red(deployment) == {"test_the_clocks_agree"}
        _as_primary(deployment, doors, faults, wrong)
        clock.set_off(0)
        wait_for(lambda: not _told(deployment), "the clock is right", 30)
        _back(deployment, faults)
    faults.wait_healthy()
    assert not _red(deployment)


def _as_primary(deployment: Deployment, doors: Access, faults: Faults, wrong: str) -> None:
    """The node with the wrong clock leads: what a time would do is refused, a mark is exact."""
    with writing(doors, PREFIX) as writer:
        _more(writer)
        faults.switchover()
        assert faults.wait_healthy().leader == wrong
        _more(writer)
        mark = f"{PREFIX}-mark"
        made = elsapg(deployment.root, "restore", "mark", mark, "--stack", deployment.stack)
        assert made.returncode == 0, made.stdout
        marked = present(deployment, PREFIX)
        _more(writer)
        refused = restore(deployment, "--to", iso(time.time()), code=2)
        assert f"the clock of {wrong} is" in refused and "use an LSN or a mark" in refused
    told = restore(deployment, "--to", mark, code=7)
    assert "the restore is done, but" in told and "the clock of" in told, told
    after = present(deployment, PREFIX)
    assert marked <= after
    assert set(writer.rows) - after, "nothing after the mark was there to be lost"


def _back(deployment: Deployment, faults: Faults) -> None:
    """The clock is right again: by it the last backup is an hour old in the future."""
    faults.switchover()
    faults.wait_healthy()
    done = elsapg(deployment.root, "backup", "now", "--stack", deployment.stack, timeout=600)
    assert done.returncode == 0, done.stdout
