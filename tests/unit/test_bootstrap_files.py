"""Reading `bootstrap_sql`: names, directives, statements and their lines. No database."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elsapg.runner.sqlfile import (
    EVERY_DATABASE,
    SqlFileError,
    cluster_file,
    migration,
    read_tree,
    split,
)

ROOT = Path(__file__).parents[2] / "bootstrap_sql"


def lines(text: str) -> list[tuple[int, str]]:
    return [(statement.line, statement.text) for statement in split(text, "f.sql")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("-- nothing\n/* at ; all */\n;;\n", []),
        ("SELECT 1", [(1, "SELECT 1")]),
        ("SELECT 1;\n\n  SELECT 2;", [(1, "SELECT 1"), (3, "SELECT 2")]),
        ("-- why\nSELECT 1;", [(2, "SELECT 1")]),
        ("SELECT ';' || 'it''s;';", [(1, "SELECT ';' || 'it''s;'")]),
        ("SELECT '\\';SELECT 2;", [(1, "SELECT '\\'"), (1, "SELECT 2")]),
        (r"SELECT E'\';', e'\\';X;", [(1, r"SELECT E'\';', e'\\'"), (1, "X")]),
        ('SELECT "a;""b";', [(1, 'SELECT "a;""b"')]),
        ("SELECT /* /* ; */ ; */ 1;", [(1, "SELECT /* /* ; */ ; */ 1")]),
        ("SELECT 1 -- a;b\n;", [(1, "SELECT 1")]),
        ("DO $$ BEGIN; END $$;", [(1, "DO $$ BEGIN; END $$")]),
        ("DO $a$ $b$;$$;$b$ $a$;", [(1, "DO $a$ $b$;$$;$b$ $a$")]),
        ("SELECT a$b$c;SELECT $1;", [(1, "SELECT a$b$c"), (1, "SELECT $1")]),
        ("SELECT (1;2);X;", [(1, "SELECT (1;2)"), (1, "X")]),
        (
            "CREATE OR REPLACE FUNCTION f() BEGIN ATOMIC SELECT CASE WHEN a THEN b END;END;X;",
            [
                (
                    1,
                    "CREATE OR REPLACE FUNCTION f() BEGIN ATOMIC SELECT CASE WHEN a THEN b END;END",
                ),
                (1, "X"),
            ],
        ),
        ("CREATE TABLE t (type e);SELECT 1;", [(1, "CREATE TABLE t (type e)"), (1, "SELECT 1")]),
    ],
)
def test_statements_are_cut_where_psql_cuts_them(
    text: str, expected: list[tuple[int, str]]
) -> None:
    assert lines(text) == expected


@given(
    st.lists(
        st.sampled_from(
            [
                "SELECT 1",
                "SELECT ';'",
                "DO $x$ ;\n; $x$",
                "VALUES (E'\\'', \"a;b\")",
                "A /* ;\n*/ B",
            ]
        ),
        max_size=8,
    ),
    st.sampled_from([";\n", " ; ", ";\n-- it's; a \"comment $$\n", ";\n\n/* ' */ "]),
)
def test_what_is_joined_is_split_again(statements: list[str], separator: str) -> None:
    text = separator.join([*statements, ""])
    found = split(text, "f.sql")
    assert [statement.text for statement in found] == statements
    for statement in found:
        assert text.split("\n")[statement.line - 1].find(statement.text.split("\n")[0]) >= 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SELECT 1;\nSELECT 'open", r"f\.sql:2: the string that begins here has no end"),
        ("\n\n/* /* */", r"f\.sql:3: the comment"),
        ("DO $x$ $y$", r"f\.sql:1: the dollar-quoted string"),
        ('SELECT "a', r"f\.sql:1: the quoted identifier"),
        ("SELECT 1;\n\\i other.sql", r"f\.sql:2: psql's backslash commands"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(SqlFileError, match=says):
        split(text, "f.sql")


def test_positions_become_lines_of_the_file() -> None:
    (_, statement) = split("SELECT 1;\n\nSELECT\n    a,\n    b;", "f.sql")
    assert [statement.line_at(position) for position in (1, 12, 19)] == [3, 4, 5]


def test_lines_of_a_body_become_lines_of_the_file() -> None:
    (statement,) = split("\nDO $$\nBEGIN\n    RAISE 'x';\nEND\n$$;", "f.sql")
    assert statement.body_line(1) == 2
    assert statement.body_line(3) == 4
    assert statement.body_line(99) == 6


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_a_cluster_file_says_where_and_how_it_runs(tmp_path: Path) -> None:
    path = write(
        tmp_path / "010_a.sql",
        "-- elsapg: database=postgres\n-- elsapg: transaction=off\n"
        "-- elsapg: unless=SELECT FROM t WHERE a = 'b'\n\nVACUUM;",
    )
    file = cluster_file(path, "cluster/010_a.sql")
    assert (file.databases, file.transaction) == (("postgres",), False)
    assert file.unless == "SELECT FROM t WHERE a = 'b'"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SELECT 1;", r"database=\(missing\)"),
        ("-- elsapg: database=nowhere\n", "database=nowhere"),
        ("-- elsapg: database=each\n-- elsapg: transaction=no\n", "transaction=no"),
        ("-- elsapg: database=each\n-- elsapg: when=never\n", "when"),
        ("-- elsapg: database=each\n-- elsapg: database=each\n", "2: database is given twice"),
        ("-- hello\n-- elsapg: database=each\n", "2: a directive"),
        ("-- elsapg: database=each\n--elsapg: transaction=off\n", "2: a directive"),
        ("-- elsapg: database=each\nBEGIN;\nSELECT 1;\nCOMMIT;", "2: BEGIN has no place"),
    ],
)
def test_a_cluster_file_that_is_not_clear_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SqlFileError, match=says):
        cluster_file(write(tmp_path / "a.sql", text), "cluster/a.sql")


@pytest.mark.parametrize("name", ["1_a.sql", "0001-a.sql", "0001_A.sql", "00001_a.sql", "a.sql"])
def test_a_migration_must_be_numbered(tmp_path: Path, name: str) -> None:
    with pytest.raises(SqlFileError, match="rename it"):
        migration(write(tmp_path / name, "SELECT 1;"), name)


@pytest.mark.parametrize(
    "text",
    [
        "BEGIN;", "START TRANSACTION;", "SELECT 1;\nCOMMIT;", "rollback;", "END;", "ABORT;",
        "PREPARE TRANSACTION 'x';",
    ],
)  # fmt: skip
def test_a_migration_may_not_end_its_transaction(tmp_path: Path, text: str) -> None:
    with pytest.raises(SqlFileError, match="remove it"):
        migration(write(tmp_path / "0001_a.sql", text), "0001_a.sql")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-- Under load: brief\nSELECT 1;", "brief"),
        ("-- Under load: two\n-- lines.\n--\n-- More.\nSELECT 1;", "two lines."),
        ("-- Under load:  spaced  \nSELECT 1;", "spaced"),
        ("-- Under load:\n-- not on its line\nSELECT 1;", ""),
        ("-- Under load: \nSELECT 1;", ""),
        ("-- Why.\n-- Under load: too late\nSELECT 1;", ""),
        ("SELECT 1; -- Under load: no", ""),
        ("", ""),
        (
            "-- elsapg: transaction=off\n-- Under load: below the directive\n"
            "DROP INDEX CONCURRENTLY IF EXISTS i;",
            "below the directive",
        ),
    ],
)
def test_a_migration_says_how_it_behaves_under_load(tmp_path: Path, text: str, says: str) -> None:
    assert migration(write(tmp_path / "0001_a.sql", text), "a").under_load == says


OFF = "-- elsapg: transaction=off\n"


@pytest.mark.parametrize(
    "text",
    [
        "DROP INDEX CONCURRENTLY IF EXISTS s.i;\nCREATE INDEX CONCURRENTLY i ON s.t (a);",
        "drop index concurrently if exists i;\ncreate unique index concurrently i on s.t (a);",
        'DROP INDEX CONCURRENTLY IF EXISTS "S"."I";\nCREATE INDEX CONCURRENTLY "I" ON s.t (a);',
        "DROP INDEX CONCURRENTLY IF EXISTS s.i;\nCOMMENT ON TABLE s.t IS 'x';",
    ],
)
def test_outside_a_transaction_indexes_are_dropped_and_built(tmp_path: Path, text: str) -> None:
    assert migration(write(tmp_path / "0002_a.sql", OFF + text), "a").transaction is False
    assert migration(write(tmp_path / "0001_a.sql", "SELECT 1;"), "a").transaction is True


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("CREATE INDEX CONCURRENTLY i ON s.t (a);", r"a:2: put DROP INDEX .* leaves i behind"),
        (
            "DROP INDEX CONCURRENTLY IF EXISTS s.j;\nCREATE INDEX CONCURRENTLY i ON s.t (a);",
            "a:3: put DROP INDEX",
        ),
        (
            "DROP INDEX CONCURRENTLY IF EXISTS i;\n"
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON s.t (a);",
            "a:3: .* without IF NOT EXISTS",
        ),
        ("CREATE INDEX i ON s.t (a);", "a:2: a migration outside a transaction must be"),
        ("DROP INDEX CONCURRENTLY i;", "can be run again after any statement"),
        ("UPDATE s.t SET a = a + 1;", "can be run again after any statement"),
        ("BEGIN;", "can be run again after any statement"),
    ],
)
def test_outside_a_transaction_nothing_else_is_let_in(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SqlFileError, match=says):
        migration(write(tmp_path / "0002_a.sql", OFF + text), "a")


@pytest.mark.parametrize(
    "text",
    ["CREATE UNIQUE INDEX CONCURRENTLY i ON s.t (a);", "DROP INDEX CONCURRENTLY IF EXISTS s.i;"],
)
def test_in_a_transaction_nothing_is_concurrent(tmp_path: Path, text: str) -> None:
    with pytest.raises(SqlFileError, match=r"a:2: CONCURRENTLY .* '-- elsapg: transaction=off'"):
        migration(write(tmp_path / "0002_a.sql", f"SELECT 1;\n{text}"), "a")
    refresh = "REFRESH MATERIALIZED VIEW CONCURRENTLY s.v;"
    assert migration(write(tmp_path / "0003_b.sql", refresh), "b").transaction


@pytest.mark.parametrize(
    "directive", ["database=each", "transaction=on", "after=migrations", "unless=SELECT"]
)
def test_the_other_directives_are_for_cluster_files(tmp_path: Path, directive: str) -> None:
    with pytest.raises(SqlFileError, match="may say '-- elsapg: transaction=off' and nothing else"):
        migration(write(tmp_path / "0002_a.sql", f"-- elsapg: {directive}\nSELECT 1;"), "a")


def test_preparing_a_statement_is_not_transaction_control(tmp_path: Path) -> None:
    assert migration(write(tmp_path / "0001_a.sql", "PREPARE p AS SELECT 1;"), "a").version == 1


def test_a_checkouts_line_ends_do_not_change_the_checksum(tmp_path: Path) -> None:
    unix = migration(write(tmp_path / "0001_a.sql", "SELECT 1;\nSELECT 2;\n"), "a")
    windows = migration(write(tmp_path / "0002_b.sql", "SELECT 1;\r\nSELECT 2;\r\n"), "b")
    assert unix.sha256 == windows.sha256 == hashlib.sha256(b"SELECT 1;\nSELECT 2;\n").hexdigest()


def test_two_files_with_one_number_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    for name in ("0001_a.sql", "0001_b.sql", "0004_c.sql"):
        write(tmp_path / "elsa_runtime" / name, "SELECT 1;")
    with pytest.raises(SqlFileError, match=r"0001_a\.sql and .*0001_b\.sql have the same.*0005"):
        read_tree(tmp_path)


def test_files_run_in_name_order(tmp_path: Path) -> None:
    for name in ("0010_c.sql", "0002_b.sql", "0001_a.sql"):
        write(tmp_path / "elsa_runtime" / name, "SELECT 1;")
    for name in ("020_b.sql", "010_a.sql"):
        write(tmp_path / "cluster" / name, "-- elsapg: database=each\n")
    tree = read_tree(tmp_path)
    assert [file.version for file in tree.migrations["elsa_runtime"]] == [1, 2, 10]
    assert [file.name for file in tree.cluster] == ["010_a.sql", "020_b.sql"]
    assert tree.cluster[0].databases == EVERY_DATABASE


def test_what_is_no_bootstrap_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SqlFileError, match="is not a bootstrap_sql folder"):
        read_tree(tmp_path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0001_a.sql"
    path.write_bytes(b"SELECT '\xff';")
    with pytest.raises(SqlFileError, match="is not UTF-8"):
        migration(path, "a")


def test_no_job_starts_before_what_it_calls_is_there() -> None:
    """A minute may begin while the bootstrap runs."""
    last = read_tree(ROOT).cluster[-1]
    assert last.after_migrations
    assert any("cron.schedule_in_database" in statement.text for statement in last.statements)


def test_the_products_own_files_are_readable() -> None:
    tree = read_tree(ROOT)
    assert tree.cluster
    assert all(tree.migrations.values())


def test_every_file_of_the_product_says_how_it_behaves_under_load() -> None:
    silent = [
        file.label
        for files in read_tree(ROOT).migrations.values()
        for file in files
        if not file.under_load
    ]
    # They were applied before the rule was made.
    assert silent == [
        "elsa_workflows/0001_workflow_definitions.sql",
        "elsa_runtime/0001_distributed_locks.sql",
    ]
