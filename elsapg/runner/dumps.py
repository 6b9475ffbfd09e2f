"""Dumps: each database by pg_dump from a standby, checked, then stored in S3 beside the archive.

    <dump_prefix>/<label>/elsa_workflows.tar.enc   a dump in directory format, as a tar
    <dump_prefix>/<label>/globals.sql.enc          roles and their settings, without passwords
    <dump_prefix>/<label>/manifest.json            written last: without it there is no dump

Only a run in which everything succeeded removes anything, by age, and never the newest dump.
"""

from __future__ import annotations

import datetime
import json
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from elsapg.errors import UnhealthyError, UsageError
from elsapg.runner import jobs, repository, sealed
from elsapg.runner.config import Config
from elsapg.runner.jobs import say
from elsapg.runner.patroni import PatroniError, leader
from elsapg.runner.s3 import Bucket

SCRATCH = Path("/var/lib/elsapg/dump")
MANIFEST = "manifest.json"
FORMAT = 1
_LABEL = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}Z")
# A standby that is further behind would give yesterday's data.
LARGEST_LAG = 64 * 1024 * 1024
# Half of the last dump and smaller is suspicious, unless both are next to nothing.
SMALL = 1024 * 1024
_DEBRIS_AGE = datetime.timedelta(days=1)


class DumpError(UnhealthyError):
    """A dump could not be made, or is not what it should be. Nothing was removed."""


@dataclass(frozen=True)
class Dump:
    """A dump in the bucket, by its manifest."""

    label: str
    manifest: dict[str, Any]

    @property
    def when(self) -> datetime.datetime:
        return label_time(self.label)

    @property
    def bytes(self) -> int:
        return sum(int(o["bytes"]) for o in self.manifest["objects"].values())

    def size_of(self, database: str) -> int | None:
        """Of the database's dump as pg_dump wrote it; None if it is not in this one."""
        told = self.manifest["databases"].get(database)
        return None if told is None else int(told["dump_bytes"])

    def as_json(self) -> dict[str, Any]:
        told = {k: v for k, v in self.manifest.items() if k != "signature"}
        return {**told, "bytes": self.bytes}


def label_time(label: str) -> datetime.datetime:
    return datetime.datetime.strptime(label, "%Y-%m-%dT%H-%M-%SZ").replace(tzinfo=datetime.UTC)


def folder(prefix: str) -> str:
    """The key prefix of a path such as `/daily`."""
    return prefix.strip("/") + "/"


def read_manifest(bucket: Bucket, prefix: str, label: str, passphrase: str) -> Dump:
    """One dump's manifest, checked. Raises UsageError for a label that is none."""
    if not _LABEL.fullmatch(label):
        raise UsageError(f"{label!r} is no dump's label: `elsapg dump list` shows them")
    key = f"{folder(prefix)}{label}/{MANIFEST}"
    if not bucket.objects(key):
        raise UsageError(f"there is no dump {label}: `elsapg dump list` shows what there is")
    manifest = json.loads(bucket.read(key))
    sealed.check(manifest, passphrase, f"dump {label}")
    if manifest.get("label") != label:
        raise sealed.SealError(f"the manifest of dump {label} is that of {manifest.get('label')}")
    return Dump(label, manifest)


def dumps(bucket: Bucket, prefix: str, passphrase: str) -> list[Dump]:
    """All dumps, oldest first."""
    labels = sorted(
        parts[-2]
        for parts in (o.key.split("/") for o in bucket.objects(folder(prefix)))
        if parts[-1] == MANIFEST and _LABEL.fullmatch(parts[-2])
    )
    return [read_manifest(bucket, prefix, label, passphrase) for label in labels]


# -- making one --------------------------------------------------------------------------------


def dump(config: Config, *, plain: bool | None = None, accept_smaller: bool = False) -> Dump:
    """Make a dump of every database and store it. Raises what went wrong; then nothing is stored.

    `plain`: plain SQL as well (what the stack says if None). `accept_smaller`: a dump of less than
    half of the last one's size is wanted.
    """
    where = repository.read()
    prefix = str(config.dump["prefix"])
    with jobs.run(config, "dump", where.name) as run:
        # First of all: without S3 there is no need to begin.
        bucket = Bucket(where)
        before = dumps(bucket, prefix, where.cipher)
        shutil.rmtree(SCRATCH, ignore_errors=True)
        SCRATCH.mkdir(parents=True)
        try:
            made = _make(config, before[-1] if before else None, accept_smaller)
            wanted = bool(config.dump["plain"]) if plain is None else plain
            done = _store(config, bucket, where.cipher, made, wanted)
        finally:
            shutil.rmtree(SCRATCH, ignore_errors=True)
        removed = retain(bucket, prefix, [*before, done], int(config.dump["retention_days"]))
        run.message = f"dump {done.label}, {done.bytes} bytes, from {done.manifest['source']}"
        run.report = {**done.as_json(), "removed": removed}
    return done


def _make(config: Config, last: Dump | None, accept_smaller: bool) -> dict[str, Any]:
    """Dump into SCRATCH from the first source that can; returns the manifest's beginning."""
    started = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    sources = _sources(config)
    for number, (node, role) in enumerate(sources):
        try:
            databases = {
                name: _dump_database(config, name, node) for name in config.dump["databases"]
            }
            _globals(config, node)
            break
        except (DumpError, psycopg.OperationalError) as error:
            if number == len(sources) - 1:
                raise
            # A standby cancels who reads what its replay must remove; the primary does not.
            say(f"{node} ({role}) gave no dump: {' '.join(str(error).split())[:300]}")
            shutil.rmtree(SCRATCH)
            SCRATCH.mkdir()
    for name, told in databases.items():
        _compare_size(name, int(told["dump_bytes"]), last, accept_smaller)
    return {
        "format": FORMAT,
        "label": f"{started:%Y-%m-%dT%H-%M-%SZ}",
        "started": started.isoformat(),
        "source": node,
        "role": role,
        "databases": databases,
    }


def _sources(config: Config) -> list[tuple[str, str]]:
    """Who to dump from: the standby that lags least, then the primary."""
    members = config.backup_patroni().members()
    standbys = sorted(
        (m for m in members if not m.leads and m.healthy and (m.lag or 0) <= LARGEST_LAG),
        key=lambda m: m.lag or 0,
    )
    found = [(m.name, "standby") for m in standbys[:1]]
    first = leader(members)
    if first:
        found.append((first.name, "primary"))
    if not found:
        raise PatroniError("no node streams and none leads: there is nobody to dump from")
    return found


_TABLES = """
SELECT n.nspname || ' ' || c.relname
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
    AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.objid = c.oid AND d.deptype = 'e'
    )
"""


def _dump_database(config: Config, name: str, node: str) -> dict[str, Any]:
    """pg_dump into SCRATCH/name, and what proves that it is whole."""
    into = SCRATCH / name
    conninfo = config.backup_conninfo(name, node)
    clock = time.monotonic()
    with psycopg.connect(conninfo, autocommit=True) as db:
        before = {row[0] for row in db.execute(_TABLES).fetchall()}
        tool(
            "pg_dump", "--format=directory", f"--jobs={config.dump['jobs']}", "--compress=zstd:3",
            "--lock-wait-timeout=120s", "--no-sync", f"--file={into}", f"--dbname={conninfo}",
        )  # fmt: skip
        after = {row[0] for row in db.execute(_TABLES).fetchall()}
        row = db.execute(
            "SELECT pg_catalog.pg_database_size(pg_catalog.current_database()),"
            " pg_catalog.current_setting('server_version')"
        ).fetchone()
    assert row
    listed = _listed(tool("pg_restore", "--list", str(into)))
    # Those that came or went meanwhile, as partitions do, may be in it or not.
    missing = sorted(t for t in before & after if t not in listed)
    if missing:
        raise DumpError(
            f"the dump of {name} lacks {len(missing)} tables: {', '.join(missing[:5])}; "
            "see whether role backup may read them"
        )
    return {
        "tables": len(before & after),
        "database_bytes": int(row[0]),
        "server_version": str(row[1]),
        "dump_bytes": sum(f.stat().st_size for f in into.iterdir()),
        "seconds": round(time.monotonic() - clock, 1),
    }


def _listed(text: str) -> set[str]:
    """Schema and name of each table whose data `pg_restore --list` shows."""
    found = set()
    for line in text.splitlines():
        match = re.match(r"\d+; \d+ \d+ TABLE DATA (.+) \S+$", line)
        if match:
            found.add(match[1])
    return found


def _globals(config: Config, node: str) -> None:
    tool(
        "pg_dumpall", "--globals-only", "--no-role-passwords",
        f"--file={SCRATCH / 'globals.sql'}", f"--dbname={config.backup_conninfo('postgres', node)}",
    )  # fmt: skip


def _compare_size(name: str, now: int, last: Dump | None, accept_smaller: bool) -> None:
    before = last.size_of(name) if last else None
    if accept_smaller or last is None or before is None or before < SMALL or now * 2 > before:
        return
    raise DumpError(
        f"the dump of {name} has {now} bytes, that of {last.label} had {before}: less than half. "
        "It was not kept, and nothing was removed. If the rows are gone on purpose: "
        "`elsapg dump now --accept-smaller`"
    )


def tool(*command: str) -> str:
    """Run one of PostgreSQL's programs; its output. Raises DumpError with its last words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = " ".join(done.stderr.strip().splitlines()[-3:])[:600]
        raise DumpError(f"{command[0]} failed ({done.returncode}): {told}")
    return done.stdout


# -- storing it --------------------------------------------------------------------------------


def _store(
    config: Config, bucket: Bucket, passphrase: str, made: dict[str, Any], plain: bool
) -> Dump:
    below = f"{folder(str(config.dump['prefix']))}{made['label']}/"
    objects: dict[str, dict[str, Any]] = {}

    def put(name: str, *source: str) -> None:
        with sealed.encrypted(list(source), passphrase) as stream:
            bucket.put(below + name, stream)  # type: ignore[arg-type]
        if bucket.size(below + name) != stream.size:
            raise DumpError(f"{name}: S3 holds another length than was sent")
        objects[name] = {"bytes": stream.size, "sha256": stream.sha256}

    for database in made["databases"]:
        put(f"{database}.tar.enc", "tar", "-C", str(SCRATCH), "-cf", "-", database)
        if plain:
            put(f"{database}.sql.gz.enc", *_piped(f"pg_restore -f - {SCRATCH / database} | gzip"))
    put("globals.sql.enc", "cat", str(SCRATCH / "globals.sql"))
    finished = datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()
    manifest = sealed.sign({**made, "finished": finished, "objects": objects}, passphrase)
    path = SCRATCH / MANIFEST
    path.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    with path.open("rb") as body:
        bucket.put(below + MANIFEST, body)
    return Dump(str(made["label"]), manifest)


def _piped(script: str) -> tuple[str, ...]:
    """A pipe that fails when any of its parts does."""
    return ("bash", "-o", "pipefail", "-c", script)


def retain(bucket: Bucket, prefix: str, found: Sequence[Dump], days: int) -> list[str]:
    """Remove what is older than `days`, but the newest dump; and what never became one."""
    now = datetime.datetime.now(datetime.UTC)
    oldest = now - datetime.timedelta(days=days)
    newest = max(found, key=lambda d: d.label)
    gone = [d.label for d in found if d.when < oldest and d.label != newest.label]
    keep = {d.label for d in found} - set(gone)
    held: dict[str, list[str]] = {}
    for thing in bucket.objects(folder(prefix)):
        label = thing.key.removeprefix(folder(prefix)).partition("/")[0]
        if not _LABEL.fullmatch(label) or label in keep:
            continue
        if label in gone or label_time(label) < now - _DEBRIS_AGE:
            held.setdefault(label, []).append(thing.key)
    for label, keys in sorted(held.items()):
        # The manifest first: what is half removed is no dump any more.
        bucket.delete(k for k in keys if k.endswith(f"/{MANIFEST}"))
        bucket.delete(k for k in keys if not k.endswith(f"/{MANIFEST}"))
        say(f"dump {label}: removed, {'old' if label in gone else 'it had no manifest'}")
    bucket.abandon(folder(prefix), now - _DEBRIS_AGE)
    return sorted(held)
