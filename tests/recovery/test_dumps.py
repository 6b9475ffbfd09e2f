"""Dumps: whole or not at all, from the standby, and never at the price of an older one."""

from __future__ import annotations

import json
import re

import pytest

from elsapg.definition.files import schedule_config
from elsapg.services.recovery import overview
from tests.chaos.faults import wait_for
from tests.recovery.archive_stack import CONTENTS, SHAPE, ArchiveStack
from tests.stacks import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.slow]

OLD = "2020-01-01T02-00-00Z"
TABLE = "elsa_workflows.bookmarks"


@pytest.fixture(scope="module")
def dumped(archived: ArchiveStack) -> ArchiveStack:
    """A stack with a dump of what it holds."""
    archived.elsapg("dump", "now", "--plain", "--accept-smaller")
    return archived


@pytest.fixture
def with_old(dumped: ArchiveStack) -> ArchiveStack:
    """A dump of years ago beside it: the next success removes it, and nothing else does."""
    dumped.plant(OLD)
    assert OLD in dumped.dumps()
    return dumped


def test_it_comes_from_the_standby_and_is_listed(dumped: ArchiveStack) -> None:
    [*_, last] = json.loads(dumped.elsapg("dump", "list", "--json"))
    assert last["source"].endswith("(standby)")
    assert last["databases"] == ["elsa_workflows", "elsa_runtime"]
    found = overview(dumped.deployment)
    assert [run.ok for run in found.ended if run.job == "dump"] == [True]
    assert [p for p in found.problems if p.job == "dump"] == []


@pytest.mark.parametrize("database", ["elsa_workflows", "elsa_runtime"])
def test_what_comes_back_is_what_was_there(dumped: ArchiveStack, database: str) -> None:
    copy = f"copy_of_{database}"
    try:
        dumped.elsapg("dump", "restore", "latest", "-D", database, "--as", copy)
        assert dumped.sql(CONTENTS, copy) == dumped.sql(CONTENTS, database)
        assert dumped.sql(SHAPE, copy) == dumped.sql(SHAPE, database)
        rights = "SELECT datacl::text !~ '[{,]=' FROM pg_database WHERE datname = '%s'"
        assert dumped.sql(rights % copy) == [["t"]], "PUBLIC gets into the copy"
    finally:
        dumped.drop_database(copy)


def test_it_takes_the_place_of_the_old_one(dumped: ArchiveStack) -> None:
    """As docs/backups.md says; the old one stays beside it, and nobody minds."""
    page = (ROOT / "docs" / "backups.md").read_text(encoding="utf-8")
    typed = [line.partition("  -- ")[0].strip() for line in re.findall("^    =# (.*)$", page, re.M)]
    assert typed[0] == "\\c elsa_workflows_yesterday" and len(typed) == 8
    dumped.elsapg(
        "dump", "restore", "latest", "-D", "elsa_workflows", "--as", "elsa_workflows_yesterday"
    )
    before = dumped.sql(CONTENTS, "elsa_workflows_yesterday")
    deployment = dumped.deployment
    psql = ("psql", "-X", "-v", "ON_ERROR_STOP=1", "-h", "/run/postgresql", "-U", "postgres")
    lines = [word for line in typed for word in ("-c", line)]
    try:
        done = deployment.hosts.run(deployment.primary(), *psql, *lines)
        assert done.code == 0, done.output
        dumped.elsapg("up", "--refresh", "--yes")
        assert dumped.sql(CONTENTS, "elsa_workflows") == before
        assert dumped.red("bootstrap", "pooler", "roles", "tenants") == set()
        # A job whose minute came while nobody could connect has failed, until it runs again.
        wait_for(lambda: not dumped.red("jobs"), "jobs succeed", 400, 5)
    finally:
        dumped.drop_database("elsa_workflows_old")


def test_nothing_lies_there_in_the_clear_and_no_password_at_all(dumped: ArchiveStack) -> None:
    label = dumped.dumps()[-1]
    files = dumped.shell(
        "s3", f'cd {dumped.folder}/daily/{label}; for f in *.enc; do head -c 8 $f; echo " $f"; done'
    )
    assert files and all(line.startswith("Salted__") for line in files.splitlines())
    assert "elsa_workflows.sql.gz.enc" in files
    # Opened without the toolkit, as docs/backups.md says.
    told = dumped.python(f"""
import subprocess, sys
from elsapg.runner import repository
from elsapg.runner.s3 import Bucket
where = repository.read()
open('/tmp/key', 'w').write(where.cipher)
sealed = Bucket(where).read('daily/{label}/globals.sql.enc')
command = 'openssl enc -d -aes-256-cbc -pbkdf2 -md sha256 -pass file:/tmp/key'
print(subprocess.run(command.split(), input=sealed, capture_output=True).stdout.decode())
sealed = Bucket(where).read('daily/{label}/elsa_workflows.sql.gz.enc')
plain = subprocess.run(command + ' | gunzip', shell=True, input=sealed, capture_output=True).stdout
print('PLAIN', b'Odd Table' in plain)
""")
    dumped.shell("runner", "rm /tmp/key")
    assert "CREATE ROLE elsa_app" in told
    assert "PLAIN True" in told
    assert "SCRAM" not in told and "PASSWORD" not in told.replace("PASSWORD NULL", "")


@pytest.mark.parametrize(
    ("label", "database", "name", "says"),
    [
        ("latest", "elsa_workflows", "elsa_runtime", "is there already"),
        ("latest", "elsa_workflows", "No Name", "is no name for a database"),
        ("latest", "postgres", "x", "has no database 'postgres'"),
        ("2001-01-01T00-00-00Z", "elsa_workflows", "x", "there is no dump"),
        ("../../wal", "elsa_workflows", "x", "is no dump's label"),
    ],
)
def test_what_cannot_be_restored_is_refused(
    dumped: ArchiveStack, label: str, database: str, name: str, says: str
) -> None:
    told = dumped.elsapg("dump", "restore", label, "-D", database, "--as", name, code=2)
    assert says in told
    assert not dumped.database_exists("elsapg_restoring")
    assert not dumped.database_exists("x")


def test_a_damaged_dump_is_named_and_leaves_nothing(with_old: ArchiveStack) -> None:
    path = f"{with_old.folder}/daily/{OLD}/elsa_workflows.tar.enc"
    with_old.shell("s3", f"printf X | dd of={path} bs=1 seek=5000 conv=notrunc status=none")
    told = with_old.elsapg("dump", "restore", OLD, "-D", "elsa_workflows", "--as", "x", code=7)
    assert f"{OLD}/elsa_workflows.tar.enc was not read" in told
    assert "checksum" in told
    # Whoever may write the bucket can give it the right checksum, but cannot sign the manifest.
    with_old.python(f"""
import io
from elsapg.runner import repository
from elsapg.runner.s3 import Bucket
Bucket(repository.read()).put('daily/{OLD}/elsa_workflows.tar.enc', io.BytesIO(b'another'))
""")
    told = with_old.elsapg("dump", "restore", OLD, "-D", "elsa_workflows", "--as", "x", code=7)
    assert f"elsa_workflows.tar.enc of dump {OLD} is not what was stored" in told
    assert not with_old.database_exists("x")
    assert not with_old.database_exists("elsapg_restoring")


def test_a_restore_that_fails_halfway_leaves_nothing(dumped: ArchiveStack) -> None:
    # A role that owns something is gone: pg_restore stops in the middle.
    dumped.sql("CREATE ROLE gone; CREATE TABLE public.owned (); ALTER TABLE public.owned"
               " OWNER TO gone", "elsa_runtime")  # fmt: skip
    dumped.elsapg("dump", "now")
    dumped.sql("DROP TABLE public.owned; DROP ROLE gone", "elsa_runtime")
    told = dumped.elsapg("dump", "restore", "latest", "-D", "elsa_runtime", "--as", "x", code=7)
    assert 'role "gone" does not exist' in told
    assert not dumped.database_exists("x")
    assert not dumped.database_exists("elsapg_restoring")
    dumped.elsapg("dump", "now")


def test_a_restore_that_was_killed_is_begun_anew(dumped: ArchiveStack) -> None:
    node = dumped.deployment.primary()
    # What one had made before it was killed.
    dumped.sql("CREATE DATABASE elsapg_restoring")
    dumped.shell(node, "mkdir -p /var/lib/postgresql/elsapg-undump/elsa_runtime")
    dumped.elsapg("dump", "restore", "latest", "-D", "elsa_runtime", "--as", "again")
    try:
        assert dumped.database_exists("again")
        assert not dumped.database_exists("elsapg_restoring")
        assert "undump" not in dumped.shell(node, "ls /var/lib/postgresql")
    finally:
        dumped.drop_database("again")


def failed(stack: ArchiveStack, process_output: str, *says: str) -> None:
    """A dump failed: it was told, on record and red, and nothing was removed for it."""
    for text in says:
        assert text in process_output
    assert OLD in stack.dumps()
    [problem] = [p for p in stack.problems() if p.job == "dump"]
    assert problem.text.startswith("the last dump failed")
    assert "dump" not in stack.shell("runner", "ls /var/lib/elsapg")


def test_s3_is_away_when_it_begins(with_old: ArchiveStack) -> None:
    before = with_old.dumps()
    with with_old.stopped("s3"):
        told = with_old.elsapg("dump", "now", code=7)
    failed(with_old, told, "daily/ was not listed", "https://s3:9000")
    assert with_old.dumps() == before
    # It is seen, and goes with the next success, which removes what is old at last.
    assert with_old.red("recovery") == {"test_dumps_are_made"}
    with_old.elsapg("dump", "now")
    assert OLD not in with_old.dumps()
    assert with_old.red("recovery") == set()


def test_s3_goes_away_in_the_middle(with_old: ArchiveStack) -> None:
    before = with_old.dumps()
    with with_old.locked(TABLE):
        going = with_old.begin("dump", "now")
        with_old.wait(
            lambda: with_old.sql(
                "SELECT 1 FROM pg_stat_activity WHERE usename = 'backup'"
                " AND wait_event_type = 'Lock'",
                node=next(
                    n for n in with_old.deployment.nodes if n != with_old.deployment.primary()
                ),
            ),
            "pg_dump does not wait",
        )
        # A second one meanwhile is refused, and says since when the first runs.
        assert "another dump runs since" in with_old.elsapg("dump", "now", code=5)
        with with_old.stopped("s3"):
            # The lock must go first, or pg_dump would wait on.
            with_old.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_locks"
                f" WHERE relation = '{TABLE}'::regclass AND mode = 'AccessExclusiveLock'",
                "elsa_workflows",
            )
            told, _ = going.communicate(timeout=300)
    assert going.returncode == 7
    failed(with_old, told, "was not stored")
    assert with_old.dumps() == before


def test_s3_goes_away_at_the_end(with_old: ArchiveStack) -> None:
    before = with_old.dumps()
    # All objects are there, the manifest is not: sign() is what comes between.
    script = """
import pathlib, time
from elsapg.runner import dumps, sealed
from elsapg.runner.config import Config
sign = sealed.sign
def late(*arguments):
    pathlib.Path('/tmp/ready').touch()
    while pathlib.Path('/tmp/ready').exists():
        time.sleep(0.1)
    return sign(*arguments)
sealed.sign = late
try:
    dumps.dump(Config.load())
except Exception as error:
    print(type(error).__name__, error)
"""
    process = with_old.deployment.hosts.converse("runner", "python3", "-c", script)
    with_old.wait(
        lambda: with_old.deployment.hosts.run("runner", "test", "-e", "/tmp/ready").code == 0,
        "it does not come to the manifest",
    )
    with with_old.stopped("s3"):
        with_old.shell("runner", "rm /tmp/ready")
        told, _ = process.communicate(timeout=120)
    failed(with_old, told, "manifest.json was not stored")
    # Objects without a manifest are no dump.
    assert with_old.dumps() == before
    assert len(with_old.shell("s3", f"ls {with_old.folder}/daily").split()) > len(before)


def test_one_that_was_killed_is_seen_and_begun_anew(with_old: ArchiveStack) -> None:
    with with_old.locked(TABLE):
        going = with_old.begin("dump", "now")
        with_old.wait(
            lambda: "dump" in with_old.shell("runner", "ls /var/lib/elsapg"), "no scratch"
        )
        with_old.shell("runner", "pkill -KILL -f '[r]unner dump'; pkill -KILL pg_dump || true")
        told, _ = going.communicate(timeout=60)
        assert going.returncode != 0
        assert "Traceback" not in told
    with_old.elsapg("dump", "now")
    [[interrupted]] = with_old.sql(
        "SELECT count(*) FROM recovery.run WHERE message LIKE 'interrupted%'"
    )
    assert int(interrupted) >= 1


def test_a_much_smaller_one_is_not_kept_unless_it_is_wanted(with_old: ArchiveStack) -> None:
    with_old.sql(
        "CREATE TABLE public.noise AS"
        " SELECT string_agg(sha512((n || 'x' || m)::text::bytea)::text, '') AS t"
        " FROM generate_series(1, 2000) n, generate_series(1, 40) m GROUP BY n",
        "elsa_runtime",
    )
    try:
        with_old.elsapg("dump", "now")
    finally:
        with_old.sql("DROP TABLE public.noise", "elsa_runtime")
    with_old.plant(OLD)
    before = with_old.dumps()
    told = with_old.elsapg("dump", "now", code=7)
    failed(with_old, told, "the dump of elsa_runtime has", "less than half", "--accept-smaller")
    assert with_old.dumps() == before
    with_old.elsapg("dump", "now", "--accept-smaller")
    assert with_old.red("recovery") == set()


def test_without_a_standby_it_comes_from_the_primary(dumped: ArchiveStack) -> None:
    standby = next(n for n in dumped.deployment.nodes if n != dumped.deployment.primary())
    with dumped.stopped(standby):
        dumped.wait(
            lambda: all(m["name"] != standby or m["state"] != "streaming"
                        for m in dumped.deployment.members()),
            "Patroni does not notice",
        )  # fmt: skip
        assert "(primary)" in dumped.elsapg("dump", "now")
    dumped.wait(
        lambda: any(m["role"] == "sync_standby" for m in dumped.deployment.members()),
        "the standby does not come back",
        120,
    )


def test_one_that_hangs_is_seen(dumped: ArchiveStack) -> None:
    dumped.sql(
        "INSERT INTO recovery.run (job, repository, started_at)"
        " SELECT 'dump', repository, now() - interval '20 hours' FROM recovery.run LIMIT 1"
    )
    assert dumped.red("recovery") == {"test_dumps_are_made"}
    assert "a dump began 20 h ago and has not ended" in dumped.elsapg("status", code=7)
    dumped.sql("DELETE FROM recovery.run WHERE finished_at IS NULL")


def test_what_is_overdue_is_seen(dumped: ArchiveStack) -> None:
    # In four days, with nothing done since.
    script = """
import sys, time
now = time.time() + 9 * 86400
time.time = lambda: now
from elsapg.runner import health
sys.exit(health.main())
"""
    told = dumped.deployment.hosts.run(
        dumped.deployment.primary(),
        *("python3", "-c", script, json.dumps(schedule_config(dumped.deployment.settings))),
    ).output
    for job in ("dump", "restore drill", "check of the repository"):
        assert f"a {job} was due" in told
