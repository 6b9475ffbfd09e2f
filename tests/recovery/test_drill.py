"""The restore drill: green when the copy is the same, red when anything is not, gone afterwards."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator

import pytest

from tests.recovery.archive_stack import ArchiveStack

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@contextlib.contextmanager
def writing(stack: ArchiveStack) -> Iterator[list[int]]:
    """Somebody writes and removes rows all the time; the result counts the statements."""
    stop, done = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            done[0] += 1
            stack.sql(
                "INSERT INTO elsa_workflows.triggers (id, workflow_definition_id,"
                " workflow_definition_version_id, name, activity_id, hash)"
                f" SELECT 'drill-{done[0]}-' || n, 'd', 'v', 'n', 'a', 'h'"
                " FROM generate_series(1, 50) AS n;"
                " DELETE FROM elsa_workflows.triggers WHERE random() < 0.3",
                "elsa_workflows",
            )

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield done
    finally:
        stop.set()
        writer.join()


def gone(stack: ArchiveStack) -> None:
    """Nothing is left of the copy: no file, no process, no key, no replay that is held."""
    assert "drill" not in stack.shell("runner", "ls -A /var/lib/elsapg /tmp")
    names = stack.shell("runner", "cat /proc/[0-9]*/comm 2>/dev/null || true")
    assert "postgres" not in names.split()
    for node in stack.deployment.nodes:
        if node != stack.deployment.primary():
            assert stack.sql("SELECT pg_is_wal_replay_paused()", node=node) == [["f"]]


def test_green_while_somebody_writes(archived: ArchiveStack) -> None:
    lines = "ls {0}/wal/archive/elsa/17-1 | grep -v history | cut -c1-8 | sort -u"
    before = archived.shell("s3", lines.format(archived.folder))
    with writing(archived) as statements:
        archived.wait(lambda: statements[0] > 3, "nothing is written")
        report = json.loads(archived.elsapg("drill", "--json"))
    assert report["findings"] == []
    assert report["tables"] >= 40
    assert report["rows"] > 3000
    assert report["restore_mib_per_s"] > 0
    assert set(report["seconds"]) == {
        *("source", "archive", "restore", "recovery", "compare", "amcheck", "tests")
    }
    gone(archived)
    # What was promoted has left nothing in the archive.
    assert archived.shell("s3", lines.format(archived.folder)) == before
    assert "tables and" in archived.elsapg("drill", "--report")
    assert archived.red("recovery") == set()
    # S3 and the nodes were busy until now.
    archived.wait(lambda: not archived.problems(), "there are no problems")
    assert "last drill" in archived.elsapg("status", code=None)


def test_what_is_wrong_with_the_copy_is_found(archived: ArchiveStack) -> None:
    # A copy of what is wrong is wrong too; that it is the same is no comfort.
    archived.sql(
        "CREATE POLICY report ON elsa_workflows.workflow_instances FOR SELECT TO elsa_app"
        " USING (true);"
        " UPDATE pg_index SET indisvalid = false"
        ' WHERE indexrelid = \'"Elsa"."Odd Table_pkey"\'::regclass',
        "elsa_workflows",
    )
    try:
        told = archived.elsapg("drill", code=7)
    finally:
        archived.sql(
            "DROP POLICY report ON elsa_workflows.workflow_instances;"
            " UPDATE pg_index SET indisvalid = true"
            ' WHERE indexrelid = \'"Elsa"."Odd Table_pkey"\'::regclass',
            "elsa_workflows",
        )
    assert 'index "Elsa"."Odd Table_pkey" is not valid' in told
    assert "without a tenant sees 3000 rows, not 0" in told
    gone(archived)
    assert archived.red("recovery") == {"test_drills_prove_that_backups_can_be_restored"}
    assert any("the last restore drill failed" in p.text for p in archived.problems())


def test_rows_that_differ_are_found(archived: ArchiveStack) -> None:
    # One row lost, one changed, in the copy only, before they are compared.
    told = archived.python(
        """
import contextlib
from elsapg.runner import drill, throwaway
from elsapg.runner.config import Config
real = throwaway.running
@contextlib.contextmanager
def damaged(*arguments):
    with real(*arguments) as copy:
        with copy.connect('elsa_workflows') as db:
            db.execute('DELETE FROM elsa_workflows.workflow_instances WHERE id = %s', ('i7',))
            db.execute('UPDATE "Elsa"."Odd Table" SET f = f + 1 WHERE "Id" = 5')
        yield copy
throwaway.running = damaged
try:
    drill.drill(Config.load())
except drill.DrillError as error:
    print(error)
"""
    )
    assert re.search(r"workflow_instances_\w+ has \d+ rows, not \d+", told)
    assert "Elsa.Odd Table has 100 rows, but not the same" in told
    gone(archived)


def test_s3_is_away(archived: ArchiveStack) -> None:
    with archived.stopped("s3"):
        told = archived.elsapg("drill", code=7)
    assert "S3" in told or "s3" in told or "archive" in told
    gone(archived)
    assert archived.red("recovery") == {"test_drills_prove_that_backups_can_be_restored"}


def test_the_wrong_key(archived: ArchiveStack) -> None:
    # In whichever of pgBackRest's files it stands.
    path = archived.shell("runner", "cd /etc/elsapg; grep -rl ^repo1-cipher-pass *").strip()
    kept = archived.shell("runner", f"cat /etc/elsapg/{path}")
    archived.write("runner", path, re.sub("(?m)^repo1-cipher-pass=.*", r"\g<0>x", kept))
    try:
        told = archived.elsapg("drill", code=7)
    finally:
        archived.write("runner", path, kept)
    assert "cipher" in told.lower() or "decrypt" in told.lower() or "crypto" in told.lower()
    gone(archived)


def test_one_that_was_killed_is_begun_anew(archived: ArchiveStack) -> None:
    going = archived.begin("drill")
    archived.wait(
        lambda: (
            "postmaster.pid" in archived.shell("runner", "ls /var/lib/elsapg/drill/data || true")
        ),
        "the copy does not start",
        180,
    )
    # It stays there while another one is begun, which is refused.
    archived.shell("runner", "pkill -STOP -f '[r]unner drill'")
    assert "another drill runs since" in archived.elsapg("drill", code=5)
    archived.shell("runner", "pkill -KILL -f '[r]unner drill'")
    going.communicate(timeout=60)
    assert going.returncode != 0
    archived.elsapg("drill")
    gone(archived)
    assert archived.red("recovery") == set()
