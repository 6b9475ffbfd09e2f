"""What tables hold, as counts and sums that two servers can be compared by.

A row's hash is taken of its text, and the hashes are added up, so order does not matter. Sequences
are not compared: their values are no part of a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

# What a value's text depends on.
_SESSION = """
SET LOCAL search_path = '';
SET LOCAL datestyle = 'ISO, YMD';
SET LOCAL intervalstyle = 'iso_8601';
SET LOCAL timezone = 'UTC';
SET LOCAL extra_float_digits = 1;
SET LOCAL bytea_output = 'hex';
SET LOCAL xmloption = 'content';
SET LOCAL row_security = off;
SET LOCAL statement_timeout = 0;
"""
_TABLES = """
SELECT n.nspname, c.relname
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p'
    AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
ORDER BY n.nspname, c.relname
"""


@dataclass(frozen=True)
class Content:
    """A table's rows: how many, and the sum of their hashes."""

    rows: int
    hashes: int


def contents(db: psycopg.Connection[Any]) -> dict[str, Content]:
    """Of every table and materialized view, in the transaction's snapshot."""
    db.execute(_SESSION)
    return dict(_contents(db))


def _contents(db: psycopg.Connection[Any]) -> Iterator[tuple[str, Content]]:
    for schema, name in db.execute(_TABLES).fetchall():
        row = db.execute(
            sql.SQL(
                "SELECT pg_catalog.count(*), coalesce(pg_catalog.sum("
                'pg_catalog.hashtextextended(t.*::pg_catalog.text COLLATE pg_catalog."C", 0)'
                "), 0) FROM {} AS t"
            ).format(sql.Identifier(schema, name))
        ).fetchone()
        assert row
        yield f"{schema}.{name}", Content(int(row[0]), int(row[1]))


def differences(database: str, left: dict[str, Content], right: dict[str, Content]) -> list[str]:
    """What `right` (restored) has otherwise than `left` (the source)."""
    told = []
    for name in sorted({*left, *right}):
        one, other = left.get(name), right.get(name)
        if one == other:
            continue
        if other is None:
            told.append(f"{database}: {name} is not there")
        elif one is None:
            told.append(f"{database}: {name} should not be there")
        elif one.rows != other.rows:
            told.append(f"{database}: {name} has {other.rows} rows, not {one.rows}")
        else:
            told.append(f"{database}: {name} has {one.rows} rows, but not the same")
    return told
