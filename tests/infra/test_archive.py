"""Archive and backups: a WAL segment written now is seen in S3, and the last backup is good."""

from __future__ import annotations

import time
from typing import Any

import pytest

from elsapg.definition import topology as t
from elsapg.errors import ElsapgError
from elsapg.services.status import DISK_PERCENT, QUEUED
from tests.infra.facts import Facts, NotSo, eventually, judge, none, same

ARRIVE_S = 30.0
LATE_S = 2 * 3600
CIPHERED = "Salted__"
LOOK = "the primary's log names pgBackRest's error; then see that S3 runs and its disk is not full"
# The last moment at which either kind of backup was due, by the runner's own reckoning. One that is
# due now may still run, or be tried again; it does not hide that the one before was missed.
DUE = f"""
import json, time
from croniter import croniter
schedules = json.load(open('/etc/elsapg/runner.json'))['schedules']
by = time.time() - {LATE_S}
print(max(croniter(words, by).get_prev(float) for words in schedules.values()))
"""


@pytest.fixture(scope="session")
def segment(facts: Facts) -> str:
    """The name of a WAL segment that was completed just now."""
    ((name,),) = facts.deployment.query(
        facts.primary(),
        "SELECT pg_walfile_name(pg_switch_wal()) "
        "FROM pg_logical_emit_message(false, 'elsapg', 'verify')",
    )
    return name


@pytest.fixture
def info(facts: Facts) -> dict[str, Any]:
    """pgBackRest's account of the repository."""
    return _info(facts)


def _info(facts: Facts) -> dict[str, Any]:
    for unit in ("runner", "s3"):
        if unit in facts.unit_names:
            facts.need(unit)
    try:
        return facts.deployment.backup_info()
    except (ElsapgError, ValueError) as error:
        raise NotSo(f"pgBackRest does not answer: {error}", LOOK) from None


@pytest.mark.target("docker", reason="S3 is elsewhere: the archive's list is what tells of it")
def test_a_segment_written_now_reaches_s3(facts: Facts, segment: str) -> None:
    """A WAL segment completed on the primary now appears in the S3 bucket, encrypted."""
    facts.need("s3")
    archive = facts.deployment.settings.archive
    folder = f"/var/lib/s3/{archive.bucket}{archive.prefix}/archive/elsa"
    host = facts.backend.host("s3")
    command = f"head -c 8 {folder}/17-*/{segment[:16]}/{segment}-*"
    seen: list[str] = []

    def arrived() -> bool:
        done = host.run(command)
        seen.append(done.stdout)
        return bool(done.rc == 0)

    judge(
        eventually(arrived, ARRIVE_S, step=0.5),
        f"{segment} is not in {archive.bucket}{archive.prefix} after {ARRIVE_S:.0f} s",
        LOOK,
    )
    judge(seen[-1] == CIPHERED, f"{segment} is stored in the clear", "see repo1-cipher-type")


def test_the_archive_lists_that_segment(facts: Facts, segment: str) -> None:
    """pgBackRest's own list of the archive reaches to that segment."""
    newest: list[str] = []

    def listed() -> bool:
        newest.append(max((a["max"] or "" for a in _info(facts).get("archive", [])), default=""))
        return newest[-1] >= segment

    judge(
        eventually(listed, ARRIVE_S, step=0.5),
        f"the archive ends at {newest[-1] or 'nothing'}, before {segment}",
        LOOK,
    )


def test_archiving_does_not_fail(facts: Facts, segment: str) -> None:
    """The primary's last attempt to archive succeeded, and nothing queues up."""
    primary = facts.primary()
    row = facts.batch(primary, _ARCHIVER)["archiver"][0]
    judge(
        not row["failing"],
        f"the last attempt failed ({row['failed_count']} failures, last {row['last_failed_wal']})",
        LOOK,
    )
    judge(row["queued"] <= QUEUED, f"{row['queued']} segments wait to be archived", LOOK)


_ARCHIVER = {
    "archiver": """
        SELECT failed_count, last_failed_wal,
            last_failed_time IS NOT NULL
                AND (last_archived_time IS NULL OR last_failed_time > last_archived_time)
                AS failing,
            (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') AS queued
        FROM pg_stat_archiver"""
}


def test_archiving_is_recent(facts: Facts, primary: str) -> None:
    """The last segment was archived within a few archive timeouts."""
    timeout = facts.deployment.settings.archive.archive_timeout_s
    row = facts.server(primary)["archiver"][0]
    age = row["age"]
    # A primary that has just been promoted has archived nothing yet; the segment above is judged.
    judge(
        age is None or age < 5 * timeout + 300,
        f"the last segment was archived {age or 0:.0f} s ago",
        LOOK,
    )


def test_the_repository_is_sound(info: dict[str, Any]) -> None:
    """pgBackRest finds its stanza in order."""
    status = info.get("status", {})
    same((status.get("code"), status.get("message")), (0, "ok"), LOOK)


def test_the_repository_is_encrypted(info: dict[str, Any]) -> None:
    """Every repository is encrypted by AES-256."""
    ciphers = {str(repo["key"]): repo["cipher"] for repo in info.get("repo", [])}
    judge(ciphers, "there is no repository", LOOK)
    same(ciphers, dict.fromkeys(ciphers, "aes-256-cbc"), "a repository's cipher cannot change")


def test_the_last_backup_is_good(info: dict[str, Any]) -> None:
    """There is a full backup, and no backup has an error."""
    backups = info.get("backup", [])
    judge(
        any(b["type"] == "full" for b in backups),
        f"{len(backups)} backups, none full",
        "take one: `elsapg backup now --type full`",
    )
    none(
        (b["label"] for b in backups if b.get("error")),
        "page checksums failed in it: look at the log, and check the disk",
    )


@pytest.mark.target("docker", reason="kubernetes keeps the schedule: its CronJobs are looked at")
def test_no_backup_was_missed(facts: Facts, info: dict[str, Any]) -> None:
    """The last backup is not older than the schedule says."""
    done = facts.backend.host("runner").run("python3 -c %s", DUE)
    judge(done.rc == 0, f"the runner cannot say: {done.stderr[-200:]}", "restart the runner")
    due = float(done.stdout)
    newest = max((b["timestamp"]["stop"] for b in info.get("backup", [])), default=0)
    judge(
        newest >= due,
        f"one was due {(time.time() - due) / 3600:.0f} h ago, the last ended "
        f"{(time.time() - newest) / 3600:.0f} h ago",
        "the runner's log says why; `elsapg backup now` takes one",
    )


def test_the_disk_has_room(facts: Facts, node: str) -> None:
    """Its disks are less than four fifths full: WAL that waits for S3 is never dropped."""
    folders = ["/var/lib/postgresql"]
    if facts.deployment.settings.postgres.wal_volume_size:
        folders.append(t.WAL_MOUNT)
    done = facts.unit(node).host.run("df -Pk " + " ".join(folders))
    found = [line.split() for line in done.stdout.splitlines()[1:]]
    judge(
        len(found) == len(folders) and all(len(words) >= 6 for words in found),
        f"df says {done.stdout[-200:]!r}",
        "look at the node's volumes",
    )
    none(
        (
            f"{folder} is {words[4]} full, {int(words[3]) // 1024} MiB are left"
            for folder, words in zip(folders, found, strict=True)
            if int(words[4].rstrip("%")) >= DISK_PERCENT
        ),
        "docs/runbook.md, 'The disk fills up'",
    )
