"""Every table with a tenant, as the catalog has it, and a row of it for any tenant.

Nothing lists the tables: one that a migration adds tomorrow is found, filled and attacked by the
tests of this folder without a change here, unless its CHECK constraints want particular values
(see VALUES). A table that cannot be filled fails the tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from sql_server import Server

Connection = psycopg.Connection[Any]

DATABASES = ("elsa_workflows", "elsa_runtime")
LOGINS = (
    "elsa_app",
    "elsa_worker",
    "elsa_readonly",
    "elsa_migrator",
    "elsa_host",
    "elsa_admin",
    "monitoring",
    "elsa_jobs",
    "backup",
)
"""Who can have a session in the two databases."""
BOUND = ("elsa_app", "elsa_worker", "elsa_readonly", "elsa_migrator")
"""Those who see the tenant of their transaction, and no other."""
HOSTS = ("elsa_host", "elsa_admin")
"""Those who see all."""

WRITTEN_BY_TRIGGERS = ("workflow_instance_keys",)

SETTING = "app.current_tenant_id"

# What a CHECK constraint wants, where "<tenant>-1" or its type's usual value would be refused.
VALUES: dict[tuple[str, str], str] = {
    ("workflow_instances", "created_at"): "2026-01-15 12:00:00+00",
    ("activity_execution_records", "started_at"): "2026-01-15 12:00:00+00",
}
_BY_TYPE = {
    "integer": "1",
    "bigint": "1",
    "smallint": "1",
    "numeric": "1",
    "double precision": "1",
    "boolean": "true",
    "jsonb": "{}",
    "text[]": "{}",
    "interval": "1 minute",
    "bytea": "\\x00",
    "timestamp with time zone": "2026-01-15 12:00:00+00",
}


@dataclass(frozen=True)
class Table:
    """A table with a tenant."""

    database: str
    schema: str
    name: str
    tenant: str
    """The column that names the tenant."""
    required: tuple[tuple[str, str], ...]
    """Columns that a row must give, with their types; the tenant's is not among them."""
    key: tuple[str, ...]
    """The primary key's columns."""

    @property
    def sql(self) -> sql.Composable:
        return sql.Identifier(self.schema, self.name)

    @property
    def column(self) -> sql.Identifier:
        return sql.Identifier(self.tenant)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    def row(self, tenant: str, number: int | str = 1) -> dict[str, str]:
        """Values for one row. Texts are "<tenant>-<number>", so references among rows fit."""
        text = f"{tenant}-{number}"
        values = {self.tenant: tenant}
        for column, kind in self.required:
            if (self.name, column) in VALUES:
                values[column] = VALUES[self.name, column]
            elif kind == "uuid":
                values[column] = hashlib.md5(text.encode()).hexdigest()
            elif kind in _BY_TYPE:
                values[column] = _BY_TYPE[kind]
            else:
                values[column] = text
        return values

    def insert(self, row: dict[str, str], suffix: str = "") -> sql.Composed:
        return sql.SQL("INSERT INTO {} ({}) VALUES ({}) {}").format(
            self.sql,
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(map(sql.Literal, row.values())),
            sql.SQL(suffix),
        )


def tenant_tables(server: Server, database: str) -> list[Table]:
    """The tables (no partitions) of a database that have a tenant."""
    found = server.rows(
        """
        SELECT n.nspname, c.relname, t.attname,
            coalesce((
                SELECT array_agg(ARRAY[a.attname, format_type(a.atttypid, NULL)] ORDER BY a.attnum)
                FROM pg_attribute AS a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                    AND a.attname <> t.attname AND a.attgenerated = '' AND a.attidentity = ''
                    AND (
                        a.attnotnull AND NOT a.atthasdef
                        -- An id that is chosen lets an attacker aim at a row.
                        OR a.attnum = ANY (k.conkey)
                    )
            ), '{}'),
            (
                SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute AS a
                WHERE a.attrelid = c.oid AND a.attnum = ANY (k.conkey)
            )
        FROM pg_class AS c
        JOIN pg_namespace AS n ON c.relnamespace = n.oid
        JOIN pg_attribute AS t ON c.oid = t.attrelid
            AND t.attname IN ('tenant_id', 'TenantId') AND NOT t.attisdropped
        JOIN pg_constraint AS k ON c.oid = k.conrelid AND k.contype = 'p'
        WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
        ORDER BY 1, 2
        """,
        database=database,
    )
    return [
        Table(
            database,
            schema,
            name,
            tenant,
            tuple((column, kind.removesuffix("(255)")) for column, kind in required),
            tuple(key),
        )
        for schema, name, tenant, required, key in found
    ]


def fill(connection: Connection, tables: list[Table], tenants: tuple[str, ...]) -> None:
    """One row per table and tenant, written by the superuser; parents before children."""
    waiting = [table for table in tables if table.name not in WRITTEN_BY_TRIGGERS]
    while waiting:
        refused: list[Table] = []
        problem: psycopg.Error | None = None
        for table in waiting:
            try:
                with connection.transaction():
                    for tenant in tenants:
                        connection.execute(
                            table.insert(table.row(tenant), "ON CONFLICT DO NOTHING")
                        )
            except psycopg.errors.ForeignKeyViolation as error:
                refused.append(table)
                problem = error
        assert len(refused) < len(waiting), f"cannot fill {list(map(str, refused))}: {problem}"
        waiting = refused


def clear(connection: Connection, tables: list[Table], tenants: tuple[str, ...]) -> None:
    """Take these tenants' rows away again, children first."""
    waiting = [table for table in tables if table.name not in WRITTEN_BY_TRIGGERS]
    while waiting:
        refused = []
        for table in waiting:
            try:
                with connection.transaction():
                    connection.execute(
                        sql.SQL("DELETE FROM {} WHERE {} = ANY (%s)").format(
                            table.sql, table.column
                        ),
                        (list(tenants),),
                    )
            except (psycopg.errors.ForeignKeyViolation, psycopg.errors.RestrictViolation):
                refused.append(table)
        assert len(refused) < len(waiting), f"cannot clear {list(map(str, refused))}"
        waiting = refused


@contextmanager
def session(
    server: Server, role: str, tenant: str | None = None, database: str = "elsa_workflows"
) -> Iterator[Connection]:
    """A transaction as `role`, in the context of `tenant` (None: unset); rolled back at the end.

    Not read-only, whatever the role's default is: an attacker changes that himself.
    """
    password = role not in ("elsa_jobs", "backup")
    with server.connect(database, role if password else "postgres") as connection:
        if not password:  # by certificate, or by pg_cron: no login that a test could do
            connection.execute(f"SET SESSION AUTHORIZATION {role}".encode())
            connection.commit()
        connection.execute("SET TRANSACTION READ WRITE")
        if tenant is not None:
            connection.execute("SELECT set_config(%s, %s, true)", (SETTING, tenant))
        try:
            yield connection
        finally:
            connection.rollback()


@dataclass(frozen=True)
class Answer:
    """What the server said to one statement, without the statement."""

    state: str
    """The SQLSTATE, or "" if it was done."""
    text: str
    """What the error told, or ""."""
    rows: tuple[Any, ...]
    count: int


def ask(
    connection: Connection,
    statement: str | sql.Composable,
    parameters: tuple[Any, ...] | None = None,
) -> Answer:
    """Try a statement in a savepoint that is rolled back: the next one finds all as it was."""
    query = statement.encode() if isinstance(statement, str) else statement
    connection.execute("SAVEPOINT attack")
    try:
        done = connection.execute(query, parameters)  # type: ignore[arg-type]
        rows = tuple(done.fetchall()) if done.description else ()
        answer = Answer("", "", rows, done.rowcount)
    except psycopg.Error as error:
        told = error.diag
        text = " | ".join(
            filter(None, [told.message_primary, told.message_detail, told.message_hint])
        )
        answer = Answer(error.sqlstate or "?", text, (), -1)
    connection.execute("ROLLBACK TO SAVEPOINT attack")
    return answer


DENIED = "42501"
