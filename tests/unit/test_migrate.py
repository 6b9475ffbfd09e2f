"""`elsapg migrate` without a server: names, numbers, the script's text, exit codes, the linter."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from elsapg import stackfile
from elsapg.cli import main
from elsapg.errors import UsageError
from elsapg.runner import migrations
from elsapg.runner.migrations import Applied, RefusedError, SqlError, examine
from elsapg.runner.sqlfile import DATABASES, migration, read_tree
from elsapg.services import migrate

ROOT = Path(__file__).parents[2]
LOAD = "-- Under load: nobody waits\n"
WORKFLOWS, RUNTIME = DATABASES


@pytest.fixture
def sql_dir(project: Path) -> Path:
    folder = project / "bootstrap_sql"
    for name in ("cluster", *DATABASES):
        (folder / name).mkdir(parents=True)
    return folder


def write(
    sql_dir: Path, name: str, text: str = f"{LOAD}SELECT 1;", database: str = RUNTIME
) -> Path:
    path = sql_dir / database / name
    path.write_text(text)
    return path


# --- new ---------------------------------------------------------------------------------------


def test_a_new_file_gets_the_databases_next_number(sql_dir: Path) -> None:
    write(sql_dir, "0001_a.sql")
    write(sql_dir, "0007_b.sql")
    assert migrate.new(sql_dir, "add_x", RUNTIME) == sql_dir / RUNTIME / "0008_add_x.sql"
    assert migrate.new(sql_dir, "add_x", RUNTIME).name == "0009_add_x.sql"
    assert migrate.new(sql_dir, "first", WORKFLOWS).name == "0001_first.sql"


def test_its_first_line_asks_how_it_behaves_under_load(sql_dir: Path) -> None:
    path = migrate.new(sql_dir, "add_x", RUNTIME)
    text = path.read_text()
    assert text.startswith("-- Under load:\n")
    assert not any(line != line.rstrip() or len(line) > 110 for line in text.splitlines())
    # What it says about itself is no answer.
    assert migration(path, "a").under_load == ""
    path.write_text(text.replace("load:\n", "load: nobody waits\n", 1))
    assert migration(path, "a").under_load == "nobody waits"
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "name", ["", "Add", "add-x", "add x", "../x", "a/b", "_x", "ä", "x.sql", "x" * 81, "x\n", "."]
)
def test_a_bad_name_is_refused_with_a_good_one(sql_dir: Path, name: str) -> None:
    with pytest.raises(UsageError, match="add_priority_to_triggers"):
        migrate.new(sql_dir, name, RUNTIME)
    assert list(sql_dir.rglob("*.sql")) == []


def test_nothing_is_overwritten(sql_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(sql_dir, "0001_add_x.sql", "precious")
    # As when a colleague's file arrives between the look and the write.
    monkeypatch.setattr(
        migrate, "read_tree", lambda _: SimpleNamespace(migrations=dict.fromkeys(DATABASES, ()))
    )
    with pytest.raises(UsageError, match=r"0001_add_x\.sql exists already"):
        migrate.new(sql_dir, "add_x", RUNTIME)
    assert path.read_text() == "precious"


def test_the_last_number_is_the_end(sql_dir: Path) -> None:
    write(sql_dir, "9999_a.sql")
    with pytest.raises(UsageError, match="no number is left"):
        migrate.new(sql_dir, "b", RUNTIME)


# --- script ------------------------------------------------------------------------------------


def test_a_script_holds_the_files_between_two_numbers_in_order(sql_dir: Path) -> None:
    for number in (1, 2, 3, 10):
        write(sql_dir, f"{number:04d}_step.sql", f"{LOAD}SELECT {number};")
    text = migrate.script(sql_dir, [RUNTIME], first=2, last=9)
    assert [n for n in (1, 2, 3, 10) if f"SELECT {n};" in text] == [2, 3]
    assert text.index("SELECT 2;") < text.index("SELECT 3;")
    assert "\\connect" not in text
    assert text.count("BEGIN ISOLATION") == text.count("\nCOMMIT;") == 2


def test_a_script_for_both_databases_connects_to_each(sql_dir: Path) -> None:
    write(sql_dir, "0001_a.sql", database=WORKFLOWS)
    write(sql_dir, "0001_b.sql")
    lines = migrate.script(sql_dir, DATABASES).splitlines()
    assert [line for line in lines if line.startswith("\\connect")] == [
        f"\\connect {WORKFLOWS}",
        f"\\connect {RUNTIME}",
    ]


@pytest.mark.parametrize(
    ("body", "added"),
    [
        ("SELECT 1;", False),
        ("SELECT 1", True),
        ("SELECT 1 -- no; end", True),
        ("SELECT 1; -- end", False),
        ("SELECT 1; /* ; */", False),
        ("SELECT ';'", True),
    ],
)
def test_a_missing_last_semicolon_is_added(sql_dir: Path, body: str, added: bool) -> None:
    write(sql_dir, "0001_a.sql", LOAD + body)
    text = migrate.script(sql_dir, [RUNTIME])
    after = text.split(body, 1)[1].split("SET CONSTRAINTS")[0]
    assert (";" in after) is added


def test_a_file_outside_a_transaction_is_not_put_into_one(sql_dir: Path) -> None:
    off = f"-- elsapg: transaction=off\n{LOAD}DROP INDEX CONCURRENTLY IF EXISTS s.i;"
    write(sql_dir, "0002_a.sql", off)
    text = migrate.script(sql_dir, [RUNTIME])
    assert "\nBEGIN ISOLATION" not in text
    assert "\nCOMMIT;" not in text
    assert "pg_advisory_unlock" in text


def test_a_script_of_nothing_is_a_mistake(sql_dir: Path) -> None:
    write(sql_dir, "0001_a.sql")
    with pytest.raises(UsageError, match="no migration of elsa_runtime has a number from 2 to 9"):
        migrate.script(sql_dir, [RUNTIME], first=2, last=9)
    with pytest.raises(UsageError, match="--from 3 lies above --to 2"):
        migrate.script(sql_dir, [RUNTIME], first=3, last=2)


def test_a_script_takes_no_file_that_apply_would_refuse(sql_dir: Path) -> None:
    write(sql_dir, "0002_silent.sql", "SELECT 1;")
    with pytest.raises(RefusedError, match=r"0002_silent\.sql does not say"):
        migrate.script(sql_dir, [RUNTIME])


# --- patience ----------------------------------------------------------------------------------


class FakeSessions:
    def get(self, database: str) -> Any:
        return None


@pytest.mark.parametrize(
    ("cause", "attempts"),
    [
        (psycopg.errors.LockNotAvailable("busy"), 10),
        (psycopg.errors.DeadlockDetected("busy"), 10),
        (psycopg.errors.UndefinedTable("no"), 1),
        (psycopg.errors.AdminShutdown("no"), 1),
    ],
)
def test_only_a_lock_is_worth_another_attempt(
    sql_dir: Path, monkeypatch: pytest.MonkeyPatch, cause: psycopg.Error, attempts: int
) -> None:
    made: list[int] = []

    def fail(*_: Any) -> int:
        made.append(1)
        raise SqlError("told") from cause

    monkeypatch.setattr(migrations, "apply_migration", fail)
    monkeypatch.setattr(migrations, "PAUSE_S", 0)
    file = migration(write(sql_dir, "0001_a.sql"), "a")
    sessions: Any = FakeSessions()
    lines: list[str] = []
    with pytest.raises(SqlError, match="told"):
        migrations.apply_patiently(sessions, RUNTIME, file, lines.append)
    assert len(made) == attempts
    assert len(lines) == attempts - 1


def test_a_session_says_whose_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    door = migrate.doors.Connection(
        addresses=(("a", 1), ("b", 2)), database="elsa_runtime_session", role="elsa_migrator",
        password="secret", ca_file=tmp_path / "ca.crt", via="session",
    )  # fmt: skip
    asked: list[Any] = []
    monkeypatch.setattr(migrate.doors, "connection", lambda *given: asked.append(given) or door)
    made: dict[str, Any] = {}
    monkeypatch.setattr(psycopg, "connect", made.update)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    deployment: Any = object()
    migrate.connector(deployment)(RUNTIME)
    assert asked == [(deployment, "elsa_migrator", RUNTIME, "session", None)]
    assert (made["host"], made["port"], made["sslmode"]) == ("a,b", "1,2", "verify-full")
    assert re.match(r"elsapg migrate \(\d+@", made["application_name"])


# --- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "apply", "new", "script"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", command, "--help"]) == 0
    assert f"elsapg migrate {command}" in capsys.readouterr().out


def test_new_and_script_need_no_stack(sql_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "new", "add_x", "-D", RUNTIME]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == sql_dir / RUNTIME / "0001_add_x.sql"
    path.write_text(f"{LOAD}SELECT 1;\n")
    assert main(["migrate", "script", "--idempotent", "--from", "1"]) == 0
    assert "SELECT 1;\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["new", "add_x"], "--database"),
        (["new", "add_x", "-D", "postgres"], "there are elsa_workflows, elsa_runtime"),
        (["new", "Add X", "-D", RUNTIME], "'Add X' names no migration"),
        (["apply", "-D", "elsa"], "database 'elsa' has no migrations"),
        (["script", "-D", "elsa"], "database 'elsa' has no migrations"),
        (["script", "--from", "0"], "--from"),
        (["script"], "no migration of"),
        (["status", "-s", "missing"], "no stack 'missing'"),
        (["undo"], "undo"),
    ],
)
@pytest.mark.usefixtures("sql_dir")
def test_usage_errors_are_told_without_a_traceback(
    line: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", *line]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def stands(sql_dir: Path, history: list[Applied]) -> migrate.Status:
    tree = read_tree(sql_dir)
    return migrate.Status(
        {
            WORKFLOWS: [],
            RUNTIME: examine(RUNTIME, tree.migrations[RUNTIME], history),
        }
    )


def row(path: Path) -> Applied:
    found = migration(path, path.name)
    return Applied(found.version, found.name, found.sha256, "2026-01-02 03:04", "elsa_migrator", 12)


@pytest.fixture
def answered(sql_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[Applied]:
    """The ledger that `migrate status` finds."""
    history: list[Applied] = []
    target = SimpleNamespace(root=sql_dir.parent, settings=stackfile.load({}, "test"))
    monkeypatch.setattr("elsapg.cli.migrate.deployment", lambda stack: target)
    monkeypatch.setattr(migrate, "connector", lambda *_: None)
    monkeypatch.setattr(migrate, "status", lambda *_: stands(sql_dir, history))
    return history


def test_status_is_0_when_everything_is_applied(
    sql_dir: Path, answered: list[Applied], capsys: pytest.CaptureFixture[str]
) -> None:
    answered.append(row(write(sql_dir, "0001_a.sql")))
    assert main(["migrate", "status"]) == 0
    output = capsys.readouterr().out
    assert "0001_a.sql" in output
    assert "2026-01-02 03:04" in output
    assert "elsa_migrator" in output
    assert "all applied" in output


def test_status_is_9_when_something_is_pending(
    sql_dir: Path, answered: list[Applied], capsys: pytest.CaptureFixture[str]
) -> None:
    answered.append(row(write(sql_dir, "0001_a.sql")))
    write(sql_dir, "0002_b.sql")
    assert main(["migrate", "status", "--json"]) == 9
    found = json.loads(capsys.readouterr().out)
    assert (found["stack"], found["pending"], found["problems"]) == ("local", 1, [])
    assert found["databases"][WORKFLOWS] == []
    assert found["databases"][RUNTIME] == [
        {
            "number": 1,
            "name": "0001_a.sql",
            "state": "applied",
            "applied_at": "2026-01-02 03:04",
            "applied_by": "elsa_migrator",
            "duration_ms": 12,
            "under_load": "nobody waits",
        },
        {
            "number": 2,
            "name": "0002_b.sql",
            "state": "pending",
            "applied_at": None,
            "applied_by": None,
            "duration_ms": None,
            "under_load": "nobody waits",
        },
    ]


def test_status_is_6_when_a_file_was_edited(
    sql_dir: Path, answered: list[Applied], capsys: pytest.CaptureFixture[str]
) -> None:
    answered.append(row(write(sql_dir, "0001_a.sql")))
    write(sql_dir, "0001_a.sql", f"{LOAD}SELECT 2;")
    write(sql_dir, "0002_b.sql")
    assert main(["migrate", "status"]) == 6
    output = capsys.readouterr().out
    assert "edited" in output
    assert "PROBLEM  elsa_runtime/0001_a.sql was edited after it was applied" in output


# --- the linter --------------------------------------------------------------------------------


def lint(path: Path) -> tuple[int, str]:
    done = subprocess.run(
        [Path(sys.executable).parent / "squawk", "-c", ROOT / ".squawk.toml", "--reporter", "gcc",
         path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("ALTER TABLE s.t ADD COLUMN x int NOT NULL;", "adding-required-field"),
        ("ALTER TABLE s.t ADD COLUMN x float DEFAULT random();", "adding-field-with-default"),
        ("CREATE INDEX i ON s.t (x);", "require-concurrent-index-creation"),
        ("DROP INDEX s.i;", "require-concurrent-index-deletion"),
        ("ALTER TABLE s.t ALTER COLUMN x TYPE bigint;", "changing-column-type"),
        ("ALTER TABLE s.t ALTER COLUMN x SET NOT NULL;", "adding-not-nullable-field"),
        ("ALTER TABLE s.t ADD CONSTRAINT c CHECK (x > 0);", "constraint-missing-not-valid"),
        (
            "ALTER TABLE s.t ADD CONSTRAINT f FOREIGN KEY (x) REFERENCES s.u (y);",
            "adding-foreign-key-constraint",
        ),
        ("ALTER TABLE s.t ADD CONSTRAINT c UNIQUE (x);", "disallowed-unique-constraint"),
        ("ALTER TABLE s.t DROP COLUMN x;", "ban-drop-column"),
        ("ALTER TABLE s.t RENAME COLUMN x TO y;", "renaming-column"),
        ("DROP TABLE s.t;", "ban-drop-table"),
        (
            "CREATE INDEX CONCURRENTLY i ON s.t (x);\nSELECT 1;",
            "ban-concurrent-index-creation-in-transaction",
        ),
        ("SELEC 1;", "syntax-error"),
    ],
)
def test_lint_goes_red_on_what_blocks_or_breaks(tmp_path: Path, statement: str, rule: str) -> None:
    path = tmp_path / "0002_a.sql"
    path.write_text(f"{LOAD}{statement}\n")
    code, said = lint(path)
    assert code == 1
    assert rule in said


@pytest.mark.parametrize(
    "text",
    [
        # A new table, with all that belongs to it, keeps nobody waiting.
        "CREATE TABLE s.n (id bigint NOT NULL, t varchar(9), v integer) PARTITION BY LIST (t);\n"
        "CREATE TABLE s.n_default PARTITION OF s.n DEFAULT;\n"
        "CREATE INDEX i ON s.n (t);\n"
        "ALTER TABLE s.n ADD CONSTRAINT u UNIQUE (id, t);\n"
        "ALTER TABLE s.n ADD CONSTRAINT c CHECK (id > 0);\n"
        "ALTER TABLE s.n ADD CONSTRAINT f FOREIGN KEY (id) REFERENCES s.n (id);\n"
        "SELECT elsapg.isolate_tenants('s.n');\n",
        "ALTER TABLE s.t ADD COLUMN x integer;\n",
        "ALTER TABLE s.t ADD COLUMN x integer NOT NULL DEFAULT 0;\n",
        "ALTER TABLE s.t ADD CONSTRAINT c CHECK (x > 0) NOT VALID;\n",
        "ALTER TABLE s.t VALIDATE CONSTRAINT c;\n",
        "-- squawk-ignore ban-drop-column\nALTER TABLE s.t DROP COLUMN x;\n",
        "-- squawk-disable-assume-in-transaction\n"
        "DROP INDEX CONCURRENTLY IF EXISTS s.i;\nCREATE INDEX CONCURRENTLY i ON s.t (x);\n",
    ],
)
def test_lint_lets_pass_what_the_template_advises(tmp_path: Path, text: str) -> None:
    path = tmp_path / "0002_a.sql"
    path.write_text(LOAD + text)
    assert lint(path) == (0, "")


def test_make_lint_runs_it_over_every_migration() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    done = subprocess.run(
        [make, "--no-print-directory", "-n", "lint"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "squawk bootstrap_sql/elsa_*/*.sql" in done.stdout
