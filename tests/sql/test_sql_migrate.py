"""`elsapg migrate` against a real server, as elsa_migrator: applied once, refused, interrupted at
any point, beside another run, behind a busy table, and by hand with psql.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sql_server import PASSWORDS, SQL_DIR, Server, docker, running

from elsapg.errors import LockedError, NotDeployedError
from elsapg.runner import migrations
from elsapg.runner.migrations import RefusedError, SqlError
from elsapg.runner.sessions import LOCK_KEY
from elsapg.runner.sqlfile import DATABASES
from elsapg.services import migrate

pytestmark = pytest.mark.docker

LOAD = "-- Under load: nobody waits\n"
RUNTIME = "elsa_runtime"


class Team:
    """Who runs `elsapg migrate` on a server, with a `bootstrap_sql` of their own."""

    def __init__(self, server: Server, sql_dir: Path) -> None:
        self.server = server
        self.sql_dir = sql_dir
        self.lines: list[str] = []

    def connect(self, database: str) -> psycopg.Connection[Any]:
        return self.server.connect(
            database, "elsa_migrator", application_name="elsapg migrate (test)"
        )

    def write(self, name: str, text: str, database: str = RUNTIME) -> None:
        (self.sql_dir / database / name).write_text(text)

    def apply(self, **options: Any) -> dict[str, list[str]]:
        options = {"databases": DATABASES, **options}
        return migrate.apply(self.connect, self.sql_dir, log=self.lines.append, **options)

    def states(self, database: str = RUNTIME) -> dict[str, str]:
        found = migrate.status(self.connect, self.sql_dir, DATABASES, self.lines.append)
        return {step.name: step.state for step in found.databases[database]}

    def ledger(self, database: str = RUNTIME) -> list[tuple[Any, ...]]:
        return self.server.rows(
            "SELECT name, applied_by FROM elsapg.schema_migration WHERE version >= 9000 ORDER BY 1",
            database=database,
        )

    def exists(self, relation: str, database: str = RUNTIME) -> bool:
        query = "SELECT to_regclass(%s) IS NOT NULL"
        return bool(self.server.value(query, (relation,), database=database))


@pytest.fixture
def team(server: Server, tmp_path: Path) -> Iterator[Team]:
    """On the shared server. What the tests make there has numbers from 9000 and is called probe."""
    yield Team(server, Path(shutil.copytree(SQL_DIR, tmp_path / "bootstrap_sql")))
    for database in DATABASES:
        with server.connect(database) as connection:
            connection.execute("DELETE FROM elsapg.schema_migration WHERE version >= 9000")
            for (name,) in connection.execute(
                "SELECT oid::regclass::text FROM pg_class"
                " WHERE relname ~ '^probe' AND relkind = 'r'"
            ).fetchall():
                connection.execute(f"DROP TABLE {name} CASCADE".encode())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def backends(server: Server, query: str) -> list[int]:
    found = server.rows(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE %s AND pid <> pg_backend_pid()"
        " AND state = 'active'",
        (f"%{query}%",),
    )
    return [row[0] for row in found]


# --- the whole of the product's files ----------------------------------------------------------


def without_migrations(target: Path) -> Path:
    """A `bootstrap_sql` that makes everything but the migrations and what needs them."""
    shutil.copytree(SQL_DIR, target)
    for path in [*target.glob("cluster/*.sql"), *target.glob("elsa_*/*.sql")]:
        if path.parent.name != "cluster" or "-- elsapg: after=migrations" in path.read_text():
            path.unlink()
    return target


def dump(server: Server, database: str) -> list[str]:
    text = docker(
        "exec", server.container, "pg_dump", "-h", "/tmp", "-U", "postgres", "-s", database
    )
    return [line for line in text.splitlines() if "restrict" not in line]


def history(server: Server, database: str) -> list[Any]:
    return server.rows(
        "SELECT version, name, sha256 FROM elsapg.schema_migration ORDER BY 1", database=database
    )


def psql(
    server: Server, script: str, database: str = "postgres", user: str = "postgres"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", "exec", "-i", "-e", f"PGPASSWORD={PASSWORDS.get(user, '')}", server.container,
         "psql", "-X", "-h", "127.0.0.1", "-U", user, "-d", database, "-f", "-"],
        input=script, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_apply_script_and_up_make_the_same_databases(
    server: Server, empty_server: Server, tmp_path: Path
) -> None:
    empty = without_migrations(tmp_path / "empty")
    team = Team(empty_server, SQL_DIR)
    with running() as other:
        for one in (empty_server, other):
            one.bootstrap(empty)
        everything = {name: [p.name for p in sorted((SQL_DIR / name).glob("*.sql"))]
                      for name in DATABASES}  # fmt: skip
        assert team.apply() == everything
        assert not any(team.apply().values())
        assert set(team.states()) == set(everything[RUNTIME])
        assert set(team.states().values()) == {"applied"}

        text = migrate.script(SQL_DIR, DATABASES)
        done = psql(other, text, DATABASES[0], "elsa_migrator")
        assert (done.returncode, done.stderr) == (0, "")
        # What is applied is refused, or passed over; either way nothing changes.
        again = psql(other, text, DATABASES[0], "elsa_migrator")
        assert again.returncode == 3
        assert f"{DATABASES[0]}/{everything[DATABASES[0]][0]} was applied already" in again.stderr
        done = psql(other, migrate.script(SQL_DIR, DATABASES, idempotent=True))
        assert (done.returncode, done.stderr) == (0, "")

        for one in (empty_server, other):
            result = one.bootstrap()
            assert not any(result.migrations.values())
        for database in DATABASES:
            assert history(empty_server, database) == history(server, database)
            assert history(other, database) == history(server, database)
            assert dump(empty_server, database) == dump(server, database)
            assert dump(other, database) == dump(server, database)
            query = "SELECT DISTINCT applied_by FROM elsapg.schema_migration"
            assert other.rows(query, database=database) == [("elsa_migrator",)]


# --- one file at a time ------------------------------------------------------------------------


def test_a_pending_file_is_applied_once_and_is_the_owners(team: Team) -> None:
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe (id integer);")
    assert team.states()["9001_probe.sql"] == "pending"
    assert team.apply()[RUNTIME] == ["9001_probe.sql"]
    assert "elsa_runtime: pending 9001_probe.sql\n  under load: nobody waits" in team.lines
    assert team.apply()[RUNTIME] == []
    assert team.ledger() == [("9001_probe.sql", "elsa_migrator")]
    owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'probe'"
    assert team.server.value(owner, database=RUNTIME) == "elsa_owner"
    # `up` knows it, too.
    assert not team.server.bootstrap(team.sql_dir).changed


def test_only_the_chosen_database_is_changed(team: Team) -> None:
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe ();")
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_workflows.probe ();", DATABASES[0])
    assert team.apply(databases=[RUNTIME]) == {RUNTIME: ["9001_probe.sql"]}
    assert team.ledger(DATABASES[0]) == []


def test_an_edited_file_is_refused_before_anything_is_applied_anywhere(team: Team) -> None:
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe (id integer);")
    team.apply()
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe (id bigint);")
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_workflows.probe ();", DATABASES[0])
    assert team.states()["9001_probe.sql"] == "edited"
    with pytest.raises(RefusedError, match=r"elsa_runtime/9001_probe\.sql was edited .*9002_"):
        team.apply()
    assert not team.exists("elsa_workflows.probe", DATABASES[0])
    script = migrate.script(team.sql_dir, [RUNTIME], idempotent=True)
    done = psql(team.server, script, RUNTIME)
    assert done.returncode == 3
    assert "elsa_runtime/9001_probe.sql was edited or renamed after it was applied" in done.stderr


def test_a_silent_file_is_refused(team: Team) -> None:
    team.write("9001_probe.sql", "CREATE TABLE elsa_runtime.probe ();")
    assert team.states()["9001_probe.sql"] == "unexplained"
    with pytest.raises(RefusedError, match=r"9001_probe\.sql does not say how"):
        team.apply()
    with pytest.raises(RefusedError, match=r"9001_probe\.sql does not say how"):
        migrate.script(team.sql_dir, [RUNTIME], first=9001)


def test_a_new_files_template_is_refused_until_it_is_filled_in(team: Team) -> None:
    path = migrate.new(team.sql_dir, "probe", RUNTIME)
    assert team.states()[path.name] == "empty"
    path.write_text(path.read_text() + "SELECT 1;\n")
    assert team.states()[path.name] == "unexplained"


def test_a_failing_file_names_its_line_and_keeps_those_before_it(team: Team) -> None:
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe ();")
    team.write("9002_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe_2 ();\nSELECT nothing;")
    with pytest.raises(
        SqlError, match=r"^elsa_runtime/9002_probe\.sql:3: in elsa_runtime: .*42703"
    ):
        team.apply()
    assert [name for name, _ in team.ledger()] == ["9001_probe.sql"]
    assert not team.exists("elsa_runtime.probe_2")


def test_a_file_cannot_leak_into_the_next(team: Team) -> None:
    leaks = "SET search_path = elsa_runtime;\nSET statement_timeout = '200ms';"
    team.write("9001_probe.sql", LOAD + leaks)
    team.write("9002_probe.sql", f"{LOAD}SELECT pg_catalog.pg_sleep(0.3);\nCREATE TABLE probe ();")
    with pytest.raises(SqlError, match=r"9002_probe\.sql:3: .*no schema has been selected"):
        team.apply()


def test_a_dry_run_tries_everything_and_keeps_nothing(team: Team) -> None:
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe ();")
    team.write("9002_probe.sql", f"{LOAD}ALTER TABLE elsa_runtime.probe ADD COLUMN id integer;")
    team.write(
        "9003_probe.sql",
        f"-- elsapg: transaction=off\n{LOAD}DROP INDEX CONCURRENTLY IF EXISTS elsa_runtime.i;",
    )
    assert team.apply(dry_run=True)[RUNTIME] == ["9001_probe.sql", "9002_probe.sql"]
    assert "elsa_runtime: not tried, it runs outside a transaction: 9003_probe.sql" in team.lines
    assert not team.exists("elsa_runtime.probe")
    assert team.ledger() == []
    team.write("9002_probe.sql", f"{LOAD}ALTER TABLE elsa_runtime.probe ADD COLUMN id nonsense;")
    with pytest.raises(SqlError, match=r"9002_probe\.sql:2: .*nonsense"):
        team.apply(dry_run=True)
    assert not team.exists("elsa_runtime.probe")


# --- rights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["UPDATE {} SET name = 'x'", "DELETE FROM {}", "TRUNCATE {}"])
def test_the_ledger_only_grows(team: Team, statement: str) -> None:
    with (
        team.connect(RUNTIME) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="schema_migration"),
    ):
        connection.execute(statement.format("elsapg.schema_migration").encode())


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly", "elsa_host"])
def test_nobody_else_writes_it(server: Server, role: str) -> None:
    with (
        server.connect(RUNTIME, role) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="elsapg"),
    ):
        connection.execute(
            "INSERT INTO elsapg.schema_migration VALUES (1, 'x', 'x', now(), 'x', 1)"
        )


def test_a_server_that_up_has_not_prepared_is_told_so(team: Team, empty_server: Server) -> None:
    with team.server.connect(RUNTIME) as connection:
        connection.execute("REVOKE INSERT ON elsapg.schema_migration FROM elsa_owner")
    try:
        with pytest.raises(
            NotDeployedError, match=r"may not be written by elsa_owner: run `elsapg up"
        ):
            team.apply()
    finally:
        team.server.bootstrap()
    for database in DATABASES:
        with empty_server.connect(autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}".encode())
    with pytest.raises(NotDeployedError, match=r"is not there: run `elsapg up`"):
        migrate.status(empty_server.connect, SQL_DIR, DATABASES, print)


# --- behind a busy table -----------------------------------------------------------------------


@pytest.mark.parametrize("by_up", [False, True])
def test_a_file_that_waits_for_a_lock_gives_way_and_tries_again(
    team: Team, monkeypatch: pytest.MonkeyPatch, by_up: bool
) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(migrations, "PAUSE_S", 0.05)
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe ();")
    team.apply()
    team.write("9002_probe.sql", f"{LOAD}ALTER TABLE elsa_runtime.probe ADD COLUMN id integer;")
    with team.connect(RUNTIME) as reader:
        reader.execute("SELECT FROM elsa_runtime.probe")

        def log(line: str) -> None:
            team.lines.append(line)
            if "attempt 4 of 10" in line:
                reader.rollback()

        if by_up:
            team.server.bootstrap(team.sql_dir, log=log)
        else:
            migrate.apply(team.connect, team.sql_dir, DATABASES, log)
    told = [line for line in team.lines if "did not get a lock" in line]
    assert [re.findall(r"attempt (\d+)", line) for line in told] == [["2"], ["3"], ["4"]]
    assert len(team.ledger()) == 2


def test_it_does_not_try_for_ever(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(migrations, "PAUSE_S", 0.05)
    monkeypatch.setattr(migrations, "ATTEMPTS", 3)
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe ();")
    team.apply()
    team.write(
        "9002_probe.sql",
        f"{LOAD}CREATE TABLE elsa_runtime.probe_2 ();\n"
        "ALTER TABLE elsa_runtime.probe ADD COLUMN id integer;",
    )
    with team.connect(RUNTIME) as reader:
        reader.execute("SELECT FROM elsa_runtime.probe")
        with pytest.raises(SqlError, match=r"9002_probe\.sql:3: .*55P03(.|\n)*in 3 attempts"):
            team.apply()
    assert not team.exists("elsa_runtime.probe_2")


# --- interrupted -------------------------------------------------------------------------------


def test_a_backend_that_is_terminated_leaves_nothing_half_applied(team: Team) -> None:
    team.write(
        "9001_probe.sql",
        f"{LOAD}CREATE TABLE elsa_runtime.probe ();\nSELECT pg_catalog.pg_sleep(60);",
    )
    caught: list[BaseException] = []

    def run() -> None:
        try:
            team.apply()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: bool(backends(team.server, "pg_sleep(60)")))
    for pid in backends(team.server, "pg_sleep(60)"):
        team.server.value("SELECT pg_terminate_backend(%s)", (pid,))
    thread.join()
    assert isinstance(caught[0], SqlError)
    assert re.match(r"elsa_runtime/9001_probe\.sql:3: .*57P01", str(caught[0]))
    assert team.ledger() == []
    assert not team.exists("elsa_runtime.probe")
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe ();")
    assert team.apply()[RUNTIME] == ["9001_probe.sql"]


class Interrupted(BaseException):
    """Stands for Ctrl-C, or the end of the process: nothing catches it."""


def interrupt_before(count: int, server: Server) -> Callable[[str], psycopg.Connection[Any]]:
    """Connections whose `count`-th statement, counted together, is never sent."""
    sent = itertools.count()

    class Connection(psycopg.Connection[Any]):
        def execute(self, *arguments: Any, **options: Any) -> Any:
            if next(sent) >= count:
                # As when the process dies: nobody says ROLLBACK.
                self.close()
                raise Interrupted
            return super().execute(*arguments, **options)

    def connect(database: str) -> psycopg.Connection[Any]:
        return Connection.connect(
            host="127.0.0.1", port=server.port, dbname=database, user="elsa_migrator",
            password=PASSWORDS["elsa_migrator"],
        )  # fmt: skip

    return connect


def test_stopped_before_any_statement_it_is_finished_by_the_next_run(team: Team) -> None:
    for number in (1, 2):
        team.write(
            f"900{number}_probe.sql",
            f"{LOAD}CREATE TABLE elsa_runtime.probe_{number} ();\n"
            f"COMMENT ON TABLE elsa_runtime.probe_{number} IS 'x';",
        )
    seen: set[tuple[bool, ...]] = set()
    for count in itertools.count():
        connect = interrupt_before(count, team.server)
        try:
            migrate.apply(connect, team.sql_dir, [RUNTIME], team.lines.append)
            break
        except Interrupted:
            tables = tuple(team.exists(f"elsa_runtime.probe_{number}") for number in (1, 2))
            assert tables == tuple(
                (f"900{number}_probe.sql", "elsa_migrator") in team.ledger() for number in (1, 2)
            )
            seen.add(tables)
    assert seen >= {(False, False), (True, False)}
    assert team.states()["9002_probe.sql"] == "applied"


# --- two runs at once --------------------------------------------------------------------------


def at_once(*runs: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(runs)

    def run(index: int) -> None:
        try:
            results[index] = runs[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


SLOW = f"{LOAD}CREATE TABLE elsa_runtime.probe ();\nSELECT pg_catalog.pg_sleep(0.5);"


def test_two_teams_at_once_apply_everything_once(team: Team) -> None:
    team.write("9001_probe.sql", SLOW)
    results = at_once(team.apply, team.apply, team.apply)
    assert sorted(map(str, results)) == sorted(
        map(
            str,
            [
                {DATABASES[0]: [], RUNTIME: ["9001_probe.sql"]},
                {DATABASES[0]: [], RUNTIME: []},
                {DATABASES[0]: [], RUNTIME: []},
            ],
        )
    )
    waits = [line for line in team.lines if "holds the migration lock" in line]
    assert waits
    assert all("elsapg migrate (test)" in line for line in waits)


def test_a_team_and_up_at_once_apply_everything_once(team: Team) -> None:
    team.write("9001_probe.sql", SLOW)
    lines: list[str] = []
    applied, result = at_once(
        team.apply, lambda: team.server.bootstrap(team.sql_dir, log=lines.append)
    )
    assert sorted([applied[RUNTIME], result.migrations[RUNTIME]]) == [[], ["9001_probe.sql"]]
    assert len(team.ledger()) == 1
    assert any("holds the migration lock" in line for line in [*lines, *team.lines])


def test_a_lock_that_is_not_given_up_names_its_holder(team: Team) -> None:
    with team.server.connect(
        RUNTIME, autocommit=True, application_name="elsapg-bootstrap"
    ) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        says = (
            rf"server process {holder.info.backend_pid}, elsapg-bootstrap.* database elsa_runtime"
        )
        with pytest.raises(LockedError, match=says):
            team.apply(run_timeout=0.2)
        # Reading waits for nobody.
        assert team.states()
        script = migrate.script(team.sql_dir, [RUNTIME], idempotent=True)
        done = psql(team.server, script, RUNTIME)
        assert done.returncode == 3
        assert "another run is migrating elsa_runtime" in done.stderr


# --- outside a transaction ---------------------------------------------------------------------

INDEX = (
    "-- elsapg: transaction=off\n"
    f"{LOAD}"
    "DROP INDEX CONCURRENTLY IF EXISTS elsa_runtime.probe_i;\n"
    "CREATE INDEX CONCURRENTLY probe_i ON elsa_runtime.probe (id);\n"
    "COMMENT ON INDEX elsa_runtime.probe_i IS 'x';"
)
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'elsa_runtime.probe_i'::regclass"


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_index_is_built_beside_writers_and_again_after_an_interruption(
    team: Team, by_hand: bool
) -> None:
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe (id integer);")
    team.apply()
    team.write("9002_probe.sql", INDEX)
    script = migrate.script(team.sql_dir, [RUNTIME], idempotent=True)

    def run() -> Any:
        return psql(team.server, script, RUNTIME) if by_hand else team.apply()

    with team.connect(RUNTIME) as writer:
        # It has written and goes on: the index cannot be finished before it ends.
        writer.execute("INSERT INTO elsa_runtime.probe VALUES (1)")
        thread = threading.Thread(target=lambda: at_once(run))
        thread.start()
        wait_for(lambda: bool(backends(team.server, "CREATE INDEX CONCURRENTLY")))
        wait_for(lambda: team.exists("elsa_runtime.probe_i"))
        # Writers go on meanwhile.
        with team.connect(RUNTIME) as other:
            other.execute("INSERT INTO elsa_runtime.probe VALUES (2)")
        for pid in backends(team.server, "CREATE INDEX CONCURRENTLY"):
            team.server.value("SELECT pg_terminate_backend(%s)", (pid,))
        thread.join()
    assert team.server.value(VALID, database=RUNTIME) is False
    assert len(team.ledger()) == 1

    run()
    assert team.server.value(VALID, database=RUNTIME) is True
    assert [name for name, _ in team.ledger()] == ["9001_probe.sql", "9002_probe.sql"]
    assert team.server.value(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
        " AND (classid::int8 << 32 | objid::int8) = %s", (LOCK_KEY,)
    ) == 0  # fmt: skip


# --- by hand -----------------------------------------------------------------------------------


def test_a_script_that_fails_leaves_nothing_of_the_file(team: Team) -> None:
    team.write("9001_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe ();")
    team.write("9002_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe_2 ();\nSELECT nothing;")
    done = psql(team.server, migrate.script(team.sql_dir, [RUNTIME], first=9001), RUNTIME)
    assert done.returncode == 3
    assert "nothing" in done.stderr
    assert team.ledger() == [("9001_probe.sql", "postgres")]
    assert not team.exists("elsa_runtime.probe_2")


def test_a_script_refuses_the_wrong_database(team: Team) -> None:
    done = psql(team.server, migrate.script(team.sql_dir, [RUNTIME]), DATABASES[0])
    assert done.returncode == 3
    assert "belongs into database elsa_runtime, and this is elsa_workflows" in done.stderr


def test_a_script_refuses_a_number_below_what_is_applied(team: Team) -> None:
    team.write("9002_probe.sql", f"{LOAD}CREATE TABLE elsa_runtime.probe ();")
    team.apply()
    team.write("9001_probe.sql", f"{LOAD}SELECT 1;")
    script = migrate.script(team.sql_dir, [RUNTIME], first=9001, idempotent=True)
    done = psql(team.server, script, RUNTIME)
    assert done.returncode == 3
    assert "9001_probe.sql is new but a later one was applied" in done.stderr
    assert team.states()["9001_probe.sql"] == "late"


def test_a_script_sends_what_the_file_says_to_the_letter(team: Team) -> None:
    odd = "it's :a \\ {{ b }} %s é"
    body = (
        f"{LOAD}CREATE TABLE elsa_runtime.probe ();\n"
        f"COMMENT ON TABLE elsa_runtime.probe IS $x${odd}$x$ -- no semicolon; here"
    )
    team.write("9001_probe.sql", body)
    done = psql(team.server, migrate.script(team.sql_dir, [RUNTIME], first=9001), RUNTIME)
    assert (done.returncode, done.stderr) == (0, "")
    comment = "SELECT obj_description('elsa_runtime.probe'::regclass, 'pg_class')"
    assert team.server.value(comment, database=RUNTIME) == odd
    assert team.states()["9001_probe.sql"] == "applied"
