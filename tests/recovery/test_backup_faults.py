"""Backups while something breaks: nothing half-made counts, and the next one is good."""

from __future__ import annotations

import json
import subprocess

import pytest

from elsapg.targets.docker import daemon as d
from tests.recovery.archive_stack import PHASES, ArchiveStack

pytestmark = [pytest.mark.docker, pytest.mark.slow]


def labels(stack: ArchiveStack) -> list[str]:
    return [b["label"] for b in json.loads(stack.elsapg("backup", "list", "--json"))]


def go_on(stack: ArchiveStack, process: subprocess.Popen[str]) -> str:
    """Let it go on to its end, which is a bad one; what it said."""
    stack.shell("runner", "pkill -CONT -x pgbackrest")
    # Some of its waits for a server that is gone have pgBackRest's own patience.
    told, _ = process.communicate(timeout=420)
    assert process.returncode != 0, told
    return told


def test_s3_is_away_when_it_begins(archived: ArchiveStack) -> None:
    with archived.stopped("s3"):
        told = archived.elsapg("backup", "now", code=7)
    assert "S3 does not answer" in told


@pytest.mark.parametrize("phase", PHASES)
def test_s3_goes_away(archived: ArchiveStack, phase: str) -> None:
    before = labels(archived)
    process = archived.backup_stopped_at(phase)
    with archived.stopped("s3"):
        assert "ERROR" in go_on(archived, process)
    # What was begun is no backup, and is in nobody's way.
    assert labels(archived) == before
    archived.elsapg("backup", "now")
    assert len(labels(archived)) == len(before) + 1


def test_the_primary_is_killed(archived: ArchiveStack) -> None:
    before = labels(archived)
    process = archived.backup_stopped_at("middle")
    primary = archived.deployment.primary()
    with d.daemon() as client:
        container = client.containers.get(archived.deployment.hosts.physical(primary))
        container.kill()
        try:
            go_on(archived, process)
            archived.wait(
                lambda: any(
                    m["role"] == "leader" and m["name"] != primary and m["state"] == "running"
                    for m in archived.deployment.members()
                ),
                "nobody takes over",
            )
        finally:
            container.start()
    archived.wait(
        lambda: any(m["role"] == "sync_standby" for m in archived.deployment.members()),
        f"{primary} does not come back",
        300,
    )
    assert labels(archived) == before
    archived.elsapg("backup", "now")
    # Along both timelines, from the oldest backup to now.
    archived.elsapg("backup", "check")
