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


def damage(stack: ArchiveStack, path: str, at: int) -> None:
    """Overwrite a byte of a file in the bucket; its good copy is /tmp/good."""
    write = f"dd of='{path}' bs=1 seek={at} conv=notrunc status=none"
    stack.shell("s3", f"cp -p '{path}' /tmp/good; printf X | {write}")


@pytest.fixture
def sound(archived: ArchiveStack) -> ArchiveStack:
    """A stack whose last backup is newer than any hole that another test has made."""
    archived.elsapg("backup", "now", "--type", "full")
    archived.elsapg("backup", "check")
    return archived


def test_a_missing_segment_is_named_until_there_is_a_backup(sound: ArchiveStack) -> None:
    switch(sound)
    lost = switch(sound)
    switch(sound)
    path = files(sound, lost)
    sound.shell("s3", f"mv '{path}' /tmp/lost-segment")
    told = sound.elsapg("backup", "check", code=7)
    assert f"WAL segment {lost} is missing" in told
    assert "elsapg backup now" in told
    assert sound.red("recovery") == {CHECK}
    assert lost in sound.elsapg("status", code=7)
    # Nothing is pretended: a drill cannot get past it either, and says so.
    assert f"WAL segment {lost} is missing" in sound.elsapg("drill", code=7)
    # With a newer backup the hole is history, which is told all the same.
    sound.elsapg("backup", "now", "--type", "full")
    told = sound.elsapg("backup", "check")
    assert lost in told and "not affected" in told
    sound.elsapg("drill")
    assert sound.red("recovery") == set()
    sound.shell("s3", f"mv /tmp/lost-segment '{path}'")


def test_a_damaged_segment_is_named(sound: ArchiveStack) -> None:
    bad = switch(sound)
    switch(sound)
    path = files(sound, bad)
    damage(sound, path, 700)
    try:
        told = sound.elsapg("backup", "check", code=7)
        assert f"WAL segment {bad} is damaged" in told
        assert sound.red("recovery") == {CHECK}
    finally:
        sound.shell("s3", f"cp -p /tmp/good '{path}'")
    sound.elsapg("backup", "check")
    assert sound.red("recovery") == set()


def test_a_damaged_backup_is_named(sound: ArchiveStack) -> None:
    [*_, last] = json.loads(sound.elsapg("backup", "list", "--json"))
    path = sound.shell(
        "s3", f"ls -S {sound.folder}/wal/backup/elsa/{last['label']}/bundle/* | head -1"
    ).strip()
    damage(sound, path, 900)
    try:
        told = sound.elsapg("backup", "check", code=7)
        assert last["label"] in told
        assert "is damaged" in told
    finally:
        sound.shell("s3", f"cp -p /tmp/good '{path}'")
    sound.elsapg("backup", "check")


def test_two_backups_at_once(archived: ArchiveStack) -> None:
    first = archived.begin("backup", "now", "--type", "full")
    archived.wait(
        lambda: "true" in archived.deployment.hosts.run(
            "runner", "sh", "-c",
            "pgbackrest --stanza=elsa --output=json info | grep -o '\"held\":true'"
            " | sed 's/.*/true/'",
        ).output,
        "the first does not begin",
    )  # fmt: skip
    told = archived.elsapg("backup", "now", code=7)
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
    # Nothing is missing.
    archived.elsapg("backup", "check")
