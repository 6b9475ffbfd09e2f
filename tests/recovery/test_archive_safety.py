"""The archive: what is missing or damaged is named, what is removed stays, alarms go off."""

from __future__ import annotations

import json

import pytest

from tests.recovery.archive_stack import ArchiveStack

pytestmark = [pytest.mark.docker, pytest.mark.slow]

CHECK = "test_the_repository_was_checked"


def switch(stack: ArchiveStack, prefix: str = "wal") -> str:
    """Complete a WAL segment with something in it, and wait until it is in S3; its name."""
    [[name]] = stack.sql(
        "SELECT pg_walfile_name(pg_switch_wal())"
        " FROM pg_logical_emit_message(false, 'elsapg', 'test')"
    )
    stack.wait(lambda: files(stack, name, prefix), f"{name} does not reach S3")
    return name


def files(stack: ArchiveStack, segment: str, prefix: str = "wal") -> str:
    """Where the segment lies in the bucket."""
    path = f"{stack.folder}/{prefix}/archive/elsa/17-1/{segment[:16]}/{segment}-*"
    return stack.shell("s3", f"ls {path} 2>/dev/null || true").strip()


def damage(stack: ArchiveStack, path: str) -> None:
    """Overwrite a byte in the middle of a file in the bucket; `mend` brings it back."""
    write = f"dd of='{path}' bs=1 seek=$(($(stat -c %s '{path}') / 2)) conv=notrunc status=none"
    stack.shell("s3", f"cp -p '{path}' /tmp/good-$(basename '{path}'); printf X | {write}")


def mend(stack: ArchiveStack, path: str) -> None:
    stack.shell("s3", f"mv /tmp/good-$(basename '{path}') '{path}'")


def test_what_is_missing_or_damaged_is_named(archived: ArchiveStack) -> None:
    archived.elsapg("backup", "now", "--type", "full")
    [*_, last] = json.loads(archived.elsapg("backup", "list", "--json"))
    bad, between, lost = (switch(archived) for _ in range(3))
    switch(archived)
    damaged = files(archived, bad)
    bundle = archived.shell(
        "s3", f"ls -S {archived.folder}/wal/backup/elsa/{last['label']}/bundle/* | head -1"
    ).strip()
    damage(archived, damaged)
    damage(archived, bundle)
    archived.shell("s3", f"rm '{files(archived, lost)}'")
    try:
        told = archived.elsapg("backup", "check", code=7)
        assert f"WAL segment {bad} is damaged" in told
        assert f"WAL segment {lost} is missing" in told
        assert f"backup {last['label']} is damaged" in told
        assert between not in told
        assert "elsapg backup now" in told
        assert archived.red("recovery") == {CHECK}
        assert lost in archived.elsapg("status", code=7)
    finally:
        mend(archived, damaged)
        mend(archived, bundle)
    # Nothing is pretended: a drill cannot get past it either, and says so.
    assert f"WAL segment {lost} is missing" in archived.elsapg("drill", code=7)
    # With a newer backup the hole is history, which is told all the same.
    archived.elsapg("backup", "now", "--type", "full")
    told = archived.elsapg("backup", "check")
    assert lost in told and "not affected" in told
    assert [p for p in archived.problems() if p.job == "check"] == []


def test_two_backups_at_once(archived: ArchiveStack) -> None:
    first = archived.backup_stopped_at("middle", patient=True)
    try:
        told = archived.elsapg("backup", "now", code=7)
    finally:
        archived.shell("runner", "pkill -CONT -x pgbackrest")
    assert "unable to acquire lock" in told
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output


def test_what_is_removed_stays_a_while(archived: ArchiveStack) -> None:
    name = switch(archived)
    script = f"""
import datetime
from elsapg.runner import repository
from elsapg.runner.s3 import Bucket
bucket = Bucket(repository.read())
print(bucket.versioning())
[thing] = [o for o in bucket.objects('wal/archive/elsa/17-1/{name[:16]}/{name}')]
bucket.delete([thing.key])
client = bucket._client
held = client.list_object_versions(Bucket=bucket.name, Prefix=thing.key)
print(len(held.get('DeleteMarkers', [])), 'marker', len(held.get('Versions', [])), 'version')
now = datetime.datetime.now(datetime.UTC)
print('early', bucket.forget(thing.key, now - datetime.timedelta(days=1)))
# It comes back by taking the marker away.
for marker in held['DeleteMarkers']:
    client.delete_object(Bucket=bucket.name, Key=thing.key, VersionId=marker['VersionId'])
print('back', [o.size == thing.size for o in bucket.objects(thing.key)])
bucket.delete([thing.key])
print('late', bucket.forget(thing.key, now + datetime.timedelta(days=1)))
held = client.list_object_versions(Bucket=bucket.name, Prefix=thing.key)
print('left', len(held.get('Versions', [])))
"""
    told = archived.python(script)
    assert told.splitlines()[0] == "Enabled"
    assert "1 marker 1 version" in told
    assert "early 0" in told
    assert "back [True]" in told
    assert "left 0" in told
    archived.elsapg("backup", "now", "--type", "full")  # over the hole that this has made


def test_wal_that_waits_for_s3_is_told_and_none_is_dropped(archived: ArchiveStack) -> None:
    configuration = archived.shell("pg-1", "cat /etc/elsapg/pgbackrest.conf")
    assert "archive-push-queue-max" not in configuration
    with archived.stopped("s3"):
        for _ in range(34):
            archived.sql(
                "SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'elsapg', 'queue')"
            )
        told = archived.elsapg("status", code=7)
        assert "WAL segments" in told and "wait on the primary's disk" in told
    archived.wait(
        lambda: archived.sql(
            "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
        ) == [["0"]],
        "the queue does not drain",
        180,
    )  # fmt: skip
    assert len(archived.shell("s3", f"find {archived.folder}/wal -name '*.zst'").split()) >= 34
