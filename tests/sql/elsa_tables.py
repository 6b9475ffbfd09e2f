"""Real Elsa's tables, made and upgraded as its migrations do, and a statement as Elsa sends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

MIGRATIONS = Path(__file__).parent / "elsa"

# What Elsa's bulk upsert sends; a bulk insert of a new row is the same statement.
UPSERT_BOOKMARK = (
    'INSERT INTO "Elsa"."Bookmarks" ("Id", "ActivityTypeName", "CreatedAt", "Hash", "TenantId",'
    ' "WorkflowInstanceId") VALUES (%(id)s, %(type)s, now(), %(hash)s, %(tenant)s, %(instance)s)\n'
    'ON CONFLICT ("Id") DO UPDATE SET\n"ActivityTypeName" = EXCLUDED."ActivityTypeName",'
    ' "CreatedAt" = EXCLUDED."CreatedAt", "Hash" = EXCLUDED."Hash",'
    ' "TenantId" = EXCLUDED."TenantId", "WorkflowInstanceId" = EXCLUDED."WorkflowInstanceId";'
)


def bookmark(id_: str, tenant: str | None, hash_: str = "hash") -> dict[str, Any]:
    """A row for UPSERT_BOOKMARK."""
    return {
        "id": id_,
        "type": "Elsa.Event",
        "hash": hash_,
        "tenant": tenant,
        "instance": f"instance-of-{id_}",
    }


def migrate(connection: psycopg.Connection[Any], version: str) -> None:
    """Run what Elsa's migrations up to `version` do, in one transaction."""
    text = (MIGRATIONS / f"{version}.sql").read_text(encoding="utf-8")
    with connection.transaction():
        connection.execute(text.encode())


def drop(connection: psycopg.Connection[Any]) -> None:
    """Leave schema "Elsa" as the bootstrap left it: there, and empty."""
    tables = connection.execute(
        "SELECT oid::regclass::text FROM pg_class"
        " WHERE relnamespace = '\"Elsa\"'::regnamespace AND relkind = 'r'"
    ).fetchall()
    for (table,) in tables:
        connection.execute(f"DROP TABLE {table}".encode())
