"""The runner against a real server: applied once, refused by name, rolled back, locked."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sql_server import PASSWORDS, SQL_DIR, Server

from elsapg.errors import LockedError
from elsapg.runner.bootstrap import bootstrap
from elsapg.runner.migrations import RefusedError, SqlError
from elsapg.runner.sessions import LOCK_KEY, NoPrimaryError
from elsapg.runner.sqlfile import DATABASES, EVERY_DATABASE

pytestmark = pytest.mark.docker

NOTHING = "0 migrations applied, 0 passwords changed, 0 settings changed"
LOAD = "-- Under load: nobody waits\n"


@pytest.fixture
def sql_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SQL_DIR, tmp_path / "bootstrap_sql"))


def snapshot(server: Server) -> str:
    """Everything a dump can tell, roles and databases included."""
    return subprocess.run(
        ["docker", "exec", server.container, "pg_dumpall", "-h", "/tmp", "-U", "postgres", "-s"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def without_tokens(dump: str) -> list[str]:
    return [line for line in dump.splitlines() if "restrict" not in line]


def ledger(server: Server, database: str) -> list[Any]:
    return server.rows(
        "SELECT version, name, sha256 FROM elsapg.schema_migration ORDER BY 1", database=database
    )


def test_a_second_run_changes_nothing_and_says_so(server: Server) -> None:
    before = snapshot(server)
    jobs = server.rows("SELECT * FROM cron.job ORDER BY jobid")
    lines: list[str] = []
    result = server.bootstrap(log=lines.append)
    assert str(result) == NOTHING
    assert not result.changed
    assert any("changed none" in line for line in lines)
    assert without_tokens(snapshot(server)) == without_tokens(before)
    assert server.rows("SELECT * FROM cron.job ORDER BY jobid") == jobs


def test_an_edited_migration_is_refused_by_name_before_anything_is_applied(
    server: Server, sql_dir: Path
) -> None:
    (sql_dir / "elsa_workflows" / "9002_new.sql").write_text(
        f"{LOAD}CREATE TABLE elsa_workflows.new ();"
    )
    (sql_dir / "cluster" / "099_new.sql").write_text(
        "-- elsapg: database=postgres\nCREATE SCHEMA never;"
    )
    edited = sql_dir / "elsa_runtime" / "0001_distributed_locks.sql"
    edited.write_text(edited.read_text() + "\n-- innocent\n")
    with pytest.raises(RefusedError, match=r"elsa_runtime/0001_distributed_locks\.sql was edited"):
        server.bootstrap(sql_dir)
    assert server.value("SELECT to_regnamespace('never') IS NULL")
    assert "9002_new.sql" not in str(ledger(server, "elsa_workflows"))


def test_a_missing_applied_file_is_refused(server: Server, sql_dir: Path) -> None:
    (sql_dir / "elsa_workflows" / "0001_workflow_definitions.sql").unlink()
    with pytest.raises(RefusedError, match=r"0001_workflow_definitions\.sql .* is missing"):
        server.bootstrap(sql_dir)


@pytest.mark.parametrize(
    ("statement", "line", "says"),
    [
        ("SELECT\n    1,\n    no_such_column;", 7, "42703"),  # the server gives a position
        ("INSERT INTO elsa_runtime.mid\nVALUES (1), (1);", 5, "DETAIL: Key (id)=(1)"),
        ("DO $$\nBEGIN\n    RAISE 'here' USING HINT = 'way out';\nEND\n$$;", 7, "HINT: way out"),
        ("SELEC 1;", 5, "42601"),
    ],
)
def test_a_failing_file_leaves_nothing_and_names_file_line_and_message(
    server: Server, sql_dir: Path, statement: str, line: int, says: str
) -> None:
    before = ledger(server, "elsa_runtime")
    (sql_dir / "elsa_runtime" / "9002_mid.sql").write_text(
        f"{LOAD}"
        "CREATE TABLE elsa_runtime.mid (\n    id integer PRIMARY KEY\n);\n"
        + statement
        + "\nCREATE TABLE elsa_runtime.after ();\n"
    )
    with pytest.raises(SqlError) as caught:
        server.bootstrap(sql_dir)
    message = str(caught.value)
    assert message.startswith(f"elsa_runtime/9002_mid.sql:{line}: in elsa_runtime: ")
    assert says in message
    assert "Nothing of this file was kept" in message
    assert server.value("SELECT to_regclass('elsa_runtime.mid') IS NULL", database="elsa_runtime")
    assert ledger(server, "elsa_runtime") == before


def test_a_deferred_constraint_fails_in_its_file(server: Server, sql_dir: Path) -> None:
    (sql_dir / "elsa_runtime" / "9002_deferred.sql").write_text(
        f"{LOAD}"
        "CREATE TABLE elsa_runtime.d (\n    id integer UNIQUE DEFERRABLE INITIALLY DEFERRED\n);\n"
        "INSERT INTO elsa_runtime.d VALUES (1), (1);\n"
    )
    with pytest.raises(SqlError, match=r"^elsa_runtime/9002_deferred\.sql:5: .*23505"):
        server.bootstrap(sql_dir)


def test_migrations_run_as_the_owner_and_cannot_leak_settings(
    empty_server: Server, sql_dir: Path
) -> None:
    (sql_dir / "elsa_runtime" / "9002_leak.sql").write_text(
        f"{LOAD}SET search_path = elsa_runtime;"
    )
    (sql_dir / "elsa_runtime" / "9003_next.sql").write_text(f"{LOAD}CREATE TABLE t (id integer);")
    with pytest.raises(SqlError, match=r"9003_next\.sql:2: .*no schema has been selected"):
        empty_server.bootstrap(sql_dir)
    (sql_dir / "elsa_runtime" / "9003_next.sql").write_text(
        f"{LOAD}CREATE TABLE elsa_runtime.t (id integer);"
    )
    assert empty_server.bootstrap(sql_dir).migrations["elsa_runtime"] == ["9003_next.sql"]
    owners = empty_server.rows(
        "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'elsa_runtime'",
        database="elsa_runtime",
    )
    assert owners == [("elsa_owner",)]
    assert [row[0] for row in ledger(empty_server, "elsa_runtime")][-2:] == [9002, 9003]


def test_roles_that_patroni_made_first_get_their_attributes(empty_server: Server) -> None:
    with empty_server.connect(autocommit=True) as connection:
        connection.execute("CREATE ROLE replicator LOGIN SUPERUSER")
        connection.execute("CREATE ROLE rewind LOGIN CREATEDB")
    empty_server.bootstrap()
    assert empty_server.rows(
        "SELECT rolname, rolsuper, rolreplication, rolcreatedb FROM pg_roles"
        " WHERE rolname IN ('replicator', 'rewind') ORDER BY 1"
    ) == [("replicator", False, True, False), ("rewind", False, False, False)]


def test_two_runs_at_once_apply_everything_once(empty_server: Server) -> None:
    results: list[Any] = []
    lines: list[str] = []

    def run() -> None:
        try:
            results.append(empty_server.bootstrap(log=lines.append))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == [
        NOTHING,
        f"{len(list(SQL_DIR.glob('elsa_*/*.sql')))} migrations applied, "
        f"{len(PASSWORDS)} passwords changed, 0 settings changed",
    ]
    assert (
        sum("holds the migration lock of database postgres; waiting" in line for line in lines) == 1
    )


def test_a_lock_that_is_not_given_up_is_an_error_with_its_holder(server: Server) -> None:
    with server.connect(autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        pid = holder.info.backend_pid
        with pytest.raises(LockedError, match=rf"server process {pid}.* after 1 s"):
            server.bootstrap(lock_timeout=1)


def test_the_lock_is_taken_in_each_database_that_is_migrated(server: Server) -> None:
    for database in DATABASES:
        with server.connect(database, autocommit=True, application_name="somebody") as holder:
            holder.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
            with pytest.raises(LockedError, match=f"somebody.* lock of database {database} "):
                server.bootstrap(lock_timeout=0)


def test_a_new_file_that_is_silent_about_load_is_refused(server: Server, sql_dir: Path) -> None:
    before = ledger(server, "elsa_runtime")
    (sql_dir / "elsa_runtime" / "9002_silent.sql").write_text("SELECT 1;")
    with pytest.raises(RefusedError, match=r"9002_silent\.sql does not say .* '-- Under load: …'"):
        server.bootstrap(sql_dir)
    assert ledger(server, "elsa_runtime") == before


LEAKS = """-- elsapg: database=elsa_runtime
SET search_path = elsa_runtime;
SET statement_timeout = '1h';
SET my.own = 'left';
SET ROLE elsa_app;
CREATE TEMPORARY TABLE left_over ();
PREPARE left_over AS SELECT 1;
LISTEN left_over;
"""
SEES = """-- elsapg: database=elsa_runtime
DO $check$
BEGIN
    ASSERT current_user = 'postgres', current_user;
    ASSERT current_setting('search_path') = '', current_setting('search_path');
    ASSERT current_setting('statement_timeout') = '0', current_setting('statement_timeout');
    ASSERT coalesce(current_setting('my.own', true), '') = '', 'my.own';
    ASSERT NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements), 'prepared';
    ASSERT NOT EXISTS (SELECT FROM pg_catalog.pg_listening_channels()), 'listening';
    ASSERT to_regclass('pg_temp.left_over') IS NULL, 'temporary table';
END
$check$;
"""


def test_a_cluster_file_cannot_leak_into_the_next(server: Server, sql_dir: Path) -> None:
    cluster = sql_dir / "cluster"
    (cluster / "098_leaks.sql").write_text(LEAKS)
    (cluster / "099_sees.sql").write_text(SEES)
    server.bootstrap(sql_dir)
    # The check can fail: in the same file it does.
    (cluster / "099_sees.sql").write_text(LEAKS + SEES.split("\n", 1)[1])
    with pytest.raises(SqlError, match=r"099_sees\.sql"):
        server.bootstrap(sql_dir)


def test_a_failing_cluster_file_leaves_nothing_and_names_its_line(
    server: Server, sql_dir: Path
) -> None:
    (sql_dir / "cluster" / "099_fails.sql").write_text(
        "-- elsapg: database=elsa_runtime\nCREATE SCHEMA never;\n"
        "DO $$\nBEGIN\n    RAISE 'here';\nEND\n$$;\nSELECT 1;\n"
    )
    with pytest.raises(SqlError, match=r"^cluster/099_fails\.sql:5: in elsa_runtime: here"):
        server.bootstrap(sql_dir)
    assert server.value("SELECT to_regnamespace('never') IS NULL", database="elsa_runtime")


def stored(server: Server, database: str) -> dict[str, int]:
    return dict(server.rows("SELECT name, value FROM elsapg.setting", database=database))


def test_the_stacks_settings_are_written_once_in_both_databases(server: Server) -> None:
    before = {database: stored(server, database) for database in DATABASES}
    lines: list[str] = []
    wanted = {"instances_days": 31, "archive_months": before["elsa_runtime"]["archive_months"]}
    try:
        result = server.bootstrap(settings=wanted, log=lines.append)
        assert (result.changed, result.settings_changed) == (True, ["instances_days"])
        was = before["elsa_runtime"]["instances_days"]
        for database in DATABASES:
            assert stored(server, database) == before[database] | wanted
            assert f"{database}: setting instances_days = 31, was {was}" in lines
            query = "SELECT elsapg.setting('instances_days')"
            assert server.value(query, database=database) == 31
        assert not server.bootstrap(settings=wanted).changed
        # Not given: as it is.
        assert not server.bootstrap().changed
        assert stored(server, "elsa_runtime")["instances_days"] == 31
    finally:
        server.bootstrap(settings=before["elsa_runtime"])


def test_a_run_opens_one_connection_per_database(empty_server: Server) -> None:
    for _ in range(2):
        opened: list[str] = []

        def connect(database: str, opened: list[str] = opened) -> psycopg.Connection[Any]:
            opened.append(database)
            return empty_server.connect(database)

        bootstrap(connect, SQL_DIR, PASSWORDS, print)
        assert sorted(opened) == sorted(EVERY_DATABASE)


def test_a_server_that_does_not_answer_is_an_error_after_the_timeout(server: Server) -> None:
    lines: list[str] = []

    def refuse(database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(host="127.0.0.1", port=1, dbname=database)

    with pytest.raises(NoPrimaryError, match="within 1 s"):
        bootstrap(refuse, SQL_DIR, PASSWORDS, lines.append, connect_timeout=1)
    assert len(lines) == 1  # one line for the reason, not one per attempt


def verifiers(server: Server) -> dict[str, str]:
    return dict(
        server.rows("SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL")
    )


def test_only_a_changed_password_gets_a_new_verifier(server: Server) -> None:
    before = verifiers(server)
    assert set(before) == set(PASSWORDS)
    lines: list[str] = []
    rotated = {**PASSWORDS, "elsa_app": "rotated-Secret!"}
    assert server.bootstrap(passwords=rotated, log=lines.append).passwords_changed == ["elsa_app"]
    try:
        after = verifiers(server)
        assert {role for role in after if after[role] != before[role]} == {"elsa_app"}
        server.connect("elsa_workflows", "elsa_app", password="rotated-Secret!").close()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            server.connect("elsa_workflows", "elsa_app")
    finally:
        server.bootstrap()
    seen = server.logs() + "\n".join(lines)
    statements = "\n".join(row[0] for row in server.rows("SELECT query FROM pg_stat_statements"))
    for secret in [*before.values(), *after.values(), *rotated.values()]:
        assert secret not in seen
        assert secret not in statements
