"""A second repository takes over where the first has a hole; a new key begins a new repository."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from elsapg import stackfile
from elsapg.services.deployment import Deployment
from tests.recovery.archive_stack import ArchiveStack
from tests.recovery.test_archive_safety import files, switch

pytestmark = [pytest.mark.docker, pytest.mark.slow]

ELSEWHERE = "/var/lib/s3/elsa-elsewhere"


def changed(stack: ArchiveStack, **archive: Any) -> ArchiveStack:
    """The stack after `elsapg up` with these keys of `archive`."""
    path = stackfile.stack_file(stack.deployment.root, stack.stack)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["config"].setdefault("elsapg:archive", {}).update(archive)
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    stack.elsapg("up", "--yes")
    return ArchiveStack(Deployment(stack.deployment.root, stack.stack))


def backups(stack: ArchiveStack) -> list[dict[str, Any]]:
    return list(json.loads(stack.elsapg("backup", "list", "--json")))


def everything(stack: ArchiveStack, folder: str) -> set[str]:
    return set(stack.shell("s3", f"find {folder} -type f").split())


@pytest.fixture(scope="module")
def two(archived: ArchiveStack) -> ArchiveStack:
    return changed(archived, second={"bucket": "elsa-elsewhere"})


def test_the_second_has_what_the_first_lacks(two: ArchiveStack) -> None:
    two.elsapg("backup", "now", "--type", "full")
    assert {b["repository"] for b in backups(two)} == {1, 2}
    two.elsapg("backup", "check")
    lost = switch(two)
    switch(two)
    path = files(two, lost)
    two.wait(lambda: path.replace(two.folder, ELSEWHERE) in everything(two, ELSEWHERE), "one only")
    two.shell("s3", f"rm '{path}'")
    told = two.elsapg("backup", "check", code=7)
    assert f"repository 1: WAL segment {lost} is missing" in told
    assert "repository 2: " not in told
    # No restore needs to know.
    two.elsapg("drill")
    two.elsapg("backup", "now", "--type", "full")
    two.elsapg("backup", "check")
    assert two.red("recovery") == set()


def test_a_new_key_begins_a_new_repository(two: ArchiveStack) -> None:
    secrets = "cat /etc/elsapg/pgbackrest.d/secrets.conf"
    old_key = two.shell("runner", secrets)
    two.elsapg("dump", "now")
    kept = everything(two, f"{two.folder}/wal") | everything(two, f"{two.folder}/daily")
    new = changed(
        two,
        key_ids=["k1", "k2"],
        prefix="/wal2",
        dump_prefix="/daily2",
        second={"bucket": "elsa-elsewhere", "prefix": "/wal2"},
    )
    assert new.shell("runner", secrets) != old_key
    assert new.shell("runner", secrets) == new.shell("pg-1", secrets)
    # A full backup in each, WAL without gaps from there, and dumps of their own.
    assert [(b["kind"], b["repository"]) for b in backups(new)] == [("full", 1), ("full", 2)]
    assert new.dumps() == []
    new.elsapg("dump", "now")
    assert len(new.dumps()) == 1
    switch(new, "wal2")
    new.elsapg("backup", "check")
    new.elsapg("drill")
    assert new.red("recovery") == set()
    # What the old key opens is all there.
    assert kept <= everything(new, f"{new.folder}/wal") | everything(new, f"{new.folder}/daily")
