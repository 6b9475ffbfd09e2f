"""Recovery: dumps, restore drills and checks of the repository were made in time, and are good."""

from __future__ import annotations

from typing import Any

import pytest

from elsapg.errors import ElsapgError
from elsapg.services.recovery import Overview, overview
from tests.infra.facts import Facts, NotSo, judge, none

JOBS = ("dump", "drill", "check")
SEE = "docs/backups.md; the log of the runner says what it tried"


@pytest.fixture(scope="session")
def found(facts: Facts) -> Overview:
    if "s3" in facts.unit_names:
        facts.need("s3")
    facts.primary()
    try:
        return overview(facts.deployment)
    except (ElsapgError, ValueError) as error:
        raise NotSo(str(error), SEE) from None


def _of(found: Overview, *jobs: str) -> Any:
    return (p.text for p in found.problems if p.job in jobs)


def test_dumps_are_made(found: Overview) -> None:
    """The last dump succeeded, none is overdue, and all that are stored can be read."""
    none(_of(found, "dump"), "`elsapg dump now` makes one, or says why not")


def test_drills_prove_that_backups_can_be_restored(found: Overview) -> None:
    """The last restore drill succeeded, and none is overdue."""
    none(_of(found, "drill"), "`elsapg drill` makes one, or says why not")


def test_the_repository_was_checked(found: Overview) -> None:
    """The last check of the repository found it whole, and none is overdue."""
    none(_of(found, "check"), "`elsapg backup check` makes one, or says why not")


def test_the_record_is_kept(found: Overview) -> None:
    """The record of dumps, drills and checks can be read, and pgBackRest answers."""
    none((p.text for p in found.problems if p.job not in JOBS), SEE)


def test_no_replay_is_held(facts: Facts, standbys: tuple[str, ...]) -> None:
    """No standby's replay is paused, as a drill does for a moment."""
    for standby in standbys:
        [[paused]] = facts.deployment.query(standby, "SELECT pg_is_wal_replay_paused()")
        judge(
            paused == "f",
            f"the replay of {standby} is paused",
            f"SELECT pg_wal_replay_resume() on {standby}",
        )
