"""Restores a dump into a fresh database, on the node that leads, as its superuser.

All or nothing: the database gets its name when everything is in it. Until then it is called
`elsapg_restoring`, and whoever comes next removes what a killed run left of it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from elsapg.errors import DeploymentError, ElsapgError, LockedError, UsageError
from elsapg.runner import repository, sealed
from elsapg.runner.dumps import Dump, DumpError, folder, read_manifest, tool
from elsapg.runner.s3 import Bucket, S3Error

SCRATCH = Path("/var/lib/postgresql/elsapg-undump")
SOCKETS = "/run/postgresql"
WORKING = "elsapg_restoring"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_LOCK = (0x656C7361, 4)
# Rows and their indexes take more than the compressed dump; the database's own size is the guide.
_ROOM = 1.2


def _say(text: str) -> None:
    print(text, flush=True)


def _connect(database: str) -> psycopg.Connection[Any]:
    return psycopg.connect(f"host={SOCKETS} user=postgres dbname={database}", autocommit=True)


def restore(label: str, database: str, name: str, prefix: str, jobs: int) -> str:
    """Restore `database` of the dump `label` as the new database `name`; what it came to."""
    if not _NAME.fullmatch(name) or name == WORKING:
        raise UsageError(
            f"{name!r} is no name for a database: a-z, 0-9 and '_', at most 63 of them"
        )
    where = repository.read()
    with _connect("postgres") as db:
        if db.execute("SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", _LOCK).fetchone() == (
            False,
        ):
            raise LockedError("another dump is being restored: wait for its end")
        if _exists(db, name):
            raise UsageError(
                f"database {name} is there already, and nothing was done to it: "
                "restore under another name (--as), and rename the two when you have compared them"
            )
        bucket = Bucket(where)
        dump = read_manifest(bucket, prefix, label, where.cipher)
        if database not in dump.manifest["databases"]:
            held = ", ".join(dump.manifest["databases"])
            raise UsageError(f"dump {label} has no database {database!r}: it has {held}")
        _room(dump, database)
        clock = time.monotonic()
        shutil.rmtree(SCRATCH, ignore_errors=True)
        SCRATCH.mkdir(mode=0o700)
        try:
            _fetch(bucket, dump, database, prefix, where.cipher)
            _load(db, database, name, jobs)
        finally:
            shutil.rmtree(SCRATCH, ignore_errors=True)
            if _exists(db, WORKING):
                _drop(db)
    return f"{database} of {label} is database {name} now ({time.monotonic() - clock:.0f} s)"


def _exists(db: psycopg.Connection[Any], name: str) -> bool:
    found = db.execute("SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", (name,))
    return found.fetchone() is not None


def _drop(db: psycopg.Connection[Any]) -> None:
    db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(WORKING)))


def _room(dump: Dump, database: str) -> None:
    told = dump.manifest["databases"][database]
    sealed_bytes = int(dump.manifest["objects"][f"{database}.tar.enc"]["bytes"])
    needed = int(told["database_bytes"] * _ROOM) + 2 * sealed_bytes
    disk = os.statvfs(SCRATCH.parent)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise DeploymentError(
            f"{database} needs about {needed // 1024**2} MiB, the node's disk has "
            f"{free // 1024**2} MiB left: make room first; nothing was done"
        )


def _fetch(bucket: Bucket, dump: Dump, database: str, prefix: str, passphrase: str) -> None:
    """Bring the dump's directory into SCRATCH, compared with the manifest before it is opened."""
    name = f"{database}.tar.enc"
    told = dump.manifest["objects"][name]
    with (SCRATCH / name).open("w+b") as file:
        bucket.fetch(f"{folder(prefix)}{dump.label}/{name}", file)
        file.seek(0)
        found = sealed.digest(file)
        if found != (told["bytes"], told["sha256"]):
            raise sealed.SealError(
                f"{name} of dump {dump.label} is not what was stored ({found[0]} bytes, SHA-256 "
                f"{found[1][:12]}…, not {told['bytes']} and {told['sha256'][:12]}…): take another"
            )
        file.seek(0)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        sealed.decrypt(file, passphrase, ["tar", "-C", str(SCRATCH), "-xf", "-"])
    (SCRATCH / name).unlink()


def _load(db: psycopg.Connection[Any], database: str, name: str, jobs: int) -> None:
    _drop(db)
    working = sql.Identifier(WORKING)
    db.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(working))
    # Nobody comes in by PUBLIC's rights, before or after.
    db.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(working))
    # What is thrown away if it fails need not wait for the standby at every commit.
    os.environ["PGOPTIONS"] = "-c synchronous_commit=off -c maintenance_work_mem=128MB"
    server = ("--host", SOCKETS, "--username", "postgres")
    tool(
        "pg_restore", *server, "--dbname", WORKING, "--exit-on-error", f"--jobs={jobs}",
        str(SCRATCH / database),
    )  # fmt: skip
    tool("vacuumdb", *server, "--dbname", WORKING, "--analyze-only", f"--jobs={jobs}", "--quiet")
    if not _exists(db, database):
        owner = None
    else:
        row = db.execute(
            "SELECT pg_catalog.pg_get_userbyid(d.datdba) FROM pg_catalog.pg_database AS d"
            " WHERE d.datname = %s",
            (database,),
        ).fetchone()
        owner = str(row[0]) if row else None
    if owner:
        db.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(working, sql.Identifier(owner)))
    db.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(working, sql.Identifier(name)))


def main() -> int:
    """`python3 -m elsapg.runner.undump LABEL DATABASE NAME`; a failure is one line on stderr."""
    parser = argparse.ArgumentParser(prog="undump")
    parser.add_argument("label")
    parser.add_argument("database")
    parser.add_argument("name")
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    # So that what was begun is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _say(restore(given.label, given.database, given.name, given.prefix, given.jobs))
    except ElsapgError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (DumpError, S3Error, sealed.SealError, psycopg.Error, OSError) as error:
        print(f"{' '.join(str(error).split())}; no database was made", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
