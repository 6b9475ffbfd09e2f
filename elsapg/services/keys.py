"""The stack's ring of encryption keys: read from its outputs, and data moved to the current key.

The ring never stands in arguments, the environment or a file: it goes to whoever asked for it, or
to the database as a bound parameter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from elsapg.errors import NotDeployedError, UnhealthyError, UsageError
from elsapg.services.connect import Connection, connection, tunnel, words
from elsapg.services.deployment import Deployment

OUTPUT = "encryption_keys"
# Sees the rows of all tenants, and is not a person.
ROLE = "elsa_host"


@dataclass(frozen=True)
class Ring:
    """The keys by their ids, 32 bytes each in base64, and the id of the one that encrypts."""

    current: str
    keys: Mapping[str, str]

    def as_json(self) -> str:
        """What `elsa_crypto.use_keys` takes. A secret."""
        return json.dumps({"current": self.current, "keys": dict(self.keys)})


@dataclass(frozen=True)
class Rotated:
    """What a rotation did to a column, in rows."""

    rewritten: int
    unreadable: int
    """Rows that hold a value under another key, or what looks like one, that no key opens."""


def ring(deployment: Deployment) -> Ring:
    """The stack's ring. Raises NotDeployedError if the stack was deployed before it had one."""
    found = deployment.outputs.get(OUTPUT)
    if not found:
        raise NotDeployedError(
            f"stack {deployment.stack!r} has no encryption keys yet: "
            f"`elsapg up --stack {deployment.stack}` makes them"
        )
    return Ring(found["current"], found["keys"])


def rotate(deployment: Deployment, table: str, column: str, database: str) -> Rotated:
    """Bring a jsonb column, for all tenants, to the current key; takes as long as it takes.

    It commits as it goes: stopped anywhere, it goes on where it is called again. Raises UsageError
    for what cannot be rotated, UnhealthyError if the database is out of reach or breaks off.
    """
    keys = ring(deployment)
    # A session: one call of many transactions, which the pool's timeouts would end.
    try:
        with tunnel(deployment, "session") as through:
            where = connection(deployment, ROLE, database, "session", through)
            with _open(where) as db:
                return move(db, keys, table, column)
    except psycopg.OperationalError as error:
        told = " ".join(str(error).split())
        raise UnhealthyError(
            f"the rotation of {table}.{column} broke off, run it again: {told}"
        ) from None


def move(db: psycopg.Connection[Any], keys: Ring, table: str, column: str) -> Rotated:
    """The rotation itself, on an open connection in autocommit mode."""
    db.execute("SET statement_timeout = 0")
    try:
        row = db.execute(
            "CALL elsa_crypto.rotate(%s::text::regclass, %s, %s)", (table, column, keys.as_json())
        ).fetchone()
    except (psycopg.OperationalError, psycopg.InterfaceError):
        raise
    except psycopg.Error as error:
        hint = f" ({error.diag.message_hint})" if error.diag.message_hint else ""
        raise UsageError(f"{table}.{column}: {error.diag.message_primary}{hint}") from None
    assert row is not None
    return Rotated(*row)


def _open(where: Connection) -> psycopg.Connection[Any]:
    return psycopg.connect(
        **words(where),
        password=where.password,
        autocommit=True,
    )
