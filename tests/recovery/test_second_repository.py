"""A second repository takes over where the first has a hole, and when it is gone; a new key begins
a new repository.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from elsapg import stackfile
from elsapg.services.deployment import Deployment
from elsapg.services.places import Places
from tests.recovery.archive_stack import CONTENTS, ArchiveStack
from tests.recovery.test_archive_safety import CHECK, files, switch
from tests.stacks import lose

pytestmark = [pytest.mark.docker, pytest.mark.slow]

ELSEWHERE = "/var/lib/s3/elsa-elsewhere"
VERSIONING = """
from elsapg.runner import repository
from elsapg.runner.s3 import Bucket
for number in (1, 2):
    print(Bucket(repository.read(number=number)).versioning())
"""


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
    # What was there before it gets a full backup in it at once.
    assert {b["repository"] for b in backups(two)} == {1, 2}
    assert two.python(VERSIONING).split() == ["Enabled", "Enabled"]
    lost = switch(two)
    switch(two)
    path = files(two, lost)
    two.wait(lambda: path.replace(two.folder, ELSEWHERE) in everything(two, ELSEWHERE), "one only")
    two.shell("s3", f"rm '{path}'")
    told = two.elsapg("backup", "check", code=7)
    assert f"repository 1: WAL segment {lost} is missing" in told
    assert "repository 2: " not in told
    assert two.red("recovery") == {CHECK}
    # No restore needs to know.
    two.elsapg("drill")


def test_one_that_cannot_be_read_keeps_nobody_from_the_other(two: ArchiveStack) -> None:
    before = [b["label"] for b in backups(two)]
    two.shell("s3", f"chmod 0 {ELSEWHERE}/wal")
    try:
        told = two.elsapg("backup", "now", "--type", "full", code=7)
        assert "repository 2: " in told and "repository 1: " not in told
        [trouble] = [p.text for p in two.problems() if p.job == "backup"]
        assert trouble.startswith("repository 2: pgbackrest info failed")
    finally:
        two.shell("s3", f"chmod 755 {ELSEWHERE}/wal")
    [new] = [b for b in backups(two) if b["label"] not in before]
    assert new["repository"] == 1


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
    assert new.red("recovery") == set()
    # What the old key opens is all there.
    assert kept <= everything(new, f"{new.folder}/wal") | everything(new, f"{new.folder}/daily")


def test_all_comes_back_when_the_first_is_gone_as_well(two: ArchiveStack, tmp_path: Path) -> None:
    deployment, before = two.deployment, two.sql(CONTENTS, "elsa_workflows")
    keys = tmp_path / "keys.json"
    keys.write_text(two.elsapg("keys", "repository"), encoding="utf-8")
    last = switch(two, "wal2")
    two.wait(lambda: last in two.shell("s3", f"find {ELSEWHERE}/wal2"), f"{last} is in one only")
    two.shell("s3", f"rm -r {two.folder}/*")
    lose(two.stack, Places(deployment.root))
    two.elsapg("up", "--from-backup", "--keys", str(keys), "--yes")
    back = ArchiveStack(Deployment(deployment.root, two.stack))
    assert back.sql(CONTENTS, "elsa_workflows") == before
    # The first is filled anew, and both are whole.
    assert {b["repository"] for b in backups(back)} == {1, 2}
    back.elsapg("backup", "check")
    assert back.red("recovery") == set()
