"""One run of a recovery job (dump, drill, check of the repository): alone, and on the record.

The lock is an advisory one on the primary, so it holds across containers and goes with its holder.
The record is `recovery.run` in the database postgres, which `status` and `verify` read.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg

from elsapg.errors import LockedError
from elsapg.runner.config import Config

Job = Literal["dump", "drill", "check"]

# Beside the bootstrap's: "elsapg" in ASCII, then the job.
_LOCK_CLASS = 0x656C7361
_LOCKS: dict[str, int] = {"dump": 1, "drill": 2, "check": 3}


def say(text: str) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    print(f"{now} {text}", flush=True)


@dataclass
class Run:
    """A run that goes on. What it puts into `message` and `report` stays on record."""

    job: Job
    message: str = "done"
    report: dict[str, Any] = field(default_factory=dict)


def connect(config: Config, database: str = "postgres") -> psycopg.Connection[Any]:
    """To the primary, as role backup."""
    return psycopg.connect(config.backup_conninfo(database), autocommit=True)


@contextlib.contextmanager
def run(config: Config, job: Job, repository: str) -> Iterator[Run]:
    """Hold the job's lock and keep its record. Raises LockedError while another run holds it."""
    with connect(config) as lock:
        _take(lock, job)
        row = lock.execute("SELECT recovery.begin_run(%s, %s)", (job, repository)).fetchone()
        assert row
        going = Run(job)
        try:
            yield going
        except BaseException as error:
            told = " ".join(str(error).split()) or type(error).__name__
            _end(config, int(row[0]), False, told[:1000], going.report)
            raise
        _end(config, int(row[0]), True, going.message, going.report)


def _take(lock: psycopg.Connection[Any], job: Job) -> None:
    key = (_LOCK_CLASS, _LOCKS[job])
    if lock.execute("SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", key).fetchone() == (True,):
        return
    since = lock.execute(
        "SELECT pg_catalog.max(r.started_at) FROM recovery.run AS r"
        " WHERE r.job = %s AND r.finished_at IS NULL",
        (job,),
    ).fetchone()
    began = f" since {since[0]:%Y-%m-%d %H:%M:%S}Z" if since and since[0] else ""
    raise LockedError(f"another {job} runs{began}: wait for its end, then run this again")


def _end(config: Config, number: int, ok: bool, message: str, report: dict[str, Any]) -> None:
    """On a connection of its own: the lock's may be gone after a failover."""
    try:
        with connect(config) as db:
            db.execute(
                "SELECT recovery.end_run(%s, %s, %s, %s)",
                (number, ok, message, json.dumps(report)),
            )
    except psycopg.Error as error:
        # Its row stays open, which shows as interrupted: what happened is in this log.
        told = " ".join(str(error).split())[:200]
        say(f"run {number} {'succeeded' if ok else 'failed'}, which could not be recorded: {told}")


def latest(db: psycopg.Connection[Any], repository: str) -> dict[str, dict[str, Any]]:
    """Of each job the last run, the last that ended, and the last good one (Unix times)."""
    columns = (
        "r.job, extract(epoch FROM r.started_at)::float8,"
        " extract(epoch FROM r.finished_at)::float8, r.ok, r.message, r.report"
    )
    found: dict[str, dict[str, Any]] = {}
    for kind, which in (
        ("last", "true"),
        ("ended", "r.finished_at IS NOT NULL"),
        ("good", "r.ok"),
    ):
        rows = db.execute(
            f"SELECT DISTINCT ON (r.job) {columns} FROM recovery.run AS r"  # noqa: S608
            f" WHERE r.repository = %s AND {which} ORDER BY r.job, r.id DESC",
            (repository,),
        )
        for job, started, finished, ok, message, report in rows.fetchall():
            found.setdefault(job, {})[kind] = {
                "started": started,
                "finished": finished,
                "ok": ok,
                "message": message,
                "report": report,
            }
    return found
