"""Whether what should have been done for recovery was done: what `status` and `verify` say of it.

Overdue is counted from the schedule, by the runner's own reckoning: a job is late when of its due
times that are more than LATE_S past, the last has passed with nothing good after it, and the stack
was there then.

It is asked of a node, since there need not be a runner that waits for questions: `python3 -m
elsapg.runner.health`, with the runner's configuration (which holds no secret) as its argument.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import psycopg
from croniter import croniter

from elsapg.errors import ElsapgError
from elsapg.runner import backup, dumps, jobs, repository
from elsapg.runner.config import Config
from elsapg.runner.pgbackrest import RepositoryError, unreadable
from elsapg.runner.s3 import Bucket, S3Error
from elsapg.runner.sealed import SealError

LATE_S = 2 * 3600
# A run that takes longer hangs: far above what the largest takes, far below a schedule's step.
STUCK_S = 12 * 3600
NAMES = {"dump": "dump", "drill": "restore drill", "check": "check of the repository"}
WAY_OUT = {
    "dump": "`elsapg dump now` makes one, or says why not",
    "drill": "`elsapg drill` makes one, or says why not",
    "check": "`elsapg backup check` makes one, or says why not",
}


SOCKETS = "/run/postgresql"


def overview(config: Config) -> dict[str, Any]:
    """Dumps, runs and problems, for whoever shows them. Each part can fail alone.

    The record is read on the node itself.
    """
    where = repository.read()
    now = time.time()
    told: dict[str, Any] = {"now": now, "dumps": [], "runs": {}, "problems": []}
    problems: list[dict[str, str]] = told["problems"]

    def problem(job: str, text: str) -> None:
        problems.append({"job": job, "text": text})

    since = None
    try:
        info = backup.info(config)
        starts = [float(b["timestamp"]["start"]) for b in info.get("backup", [])]
        since = min(starts, default=None)
        troubles = unreadable(info)
        for number in backup.repositories(config):
            if number in troubles:
                problem("backup", f"repository {number}: {troubles[number]}")
                continue
            for text in _backups(config, info, number, since, now):
                problem("backup", text)
    except RepositoryError as error:
        problem("backup", str(error))
    found: list[dumps.Dump] | None = None
    try:
        found = dumps.dumps(Bucket(where, patience=2), str(config.dump["prefix"]), where.cipher)
        told["dumps"] = [d.as_json() for d in found]
    except (S3Error, SealError) as error:
        problem("dump", f"the dumps cannot be read: {error}")
    runs: Mapping[str, Mapping[str, Any]] | None = None
    try:
        with psycopg.connect(f"host={SOCKETS} user=postgres dbname=postgres") as db:
            runs = jobs.latest(db, where.name)
        told["runs"] = runs
    except psycopg.Error as error:
        problem("record", f"the record cannot be read: {' '.join(str(error).split())}")
    for job, words in config.job_schedules.items():
        done = None
        if job == "dump" and found is not None:
            done = found[-1].when.timestamp() if found else 0.0
        elif job != "dump" and runs is not None:
            done = float(runs.get(job, {}).get("good", {}).get("started") or 0.0)
        for text in _judged(job, words, done, since, (runs or {}).get(job, {}), now):
            problem(job, text)
    return told


def _judged(
    job: str,
    words: str,
    done: float | None,
    since: float | None,
    run: Mapping[str, Any],
    now: float,
) -> list[str]:
    """What is wrong with one job. `done`: when its last good result was begun; None: unknown."""
    name, texts = NAMES[job], []
    ended, last = run.get("ended"), run.get("last")
    if ended and not ended["ok"]:
        texts.append(f"the last {name} failed ({_utc(ended['started'])}): {ended['message']}")
    if last and last["finished"] is None and now - last["started"] > STUCK_S:
        hours = (now - last["started"]) / 3600
        texts.append(
            f"a {name} began {hours:.0f} h ago and has not ended: it hangs, or was killed; if "
            "its process is there, end it (docs/runbook.md, 'Backups, dumps, drills'); "
            f"{WAY_OUT[job]}"
        )
    due = _due(words, now)
    if done is not None and overdue(due, done, since):
        was = f"the last good one is of {_utc(done)}" if done else "there is none"
        texts.append(f"a {name} was due {_utc(due)}, {was}; {WAY_OUT[job]}")
    return texts


def _backups(
    config: Config, info: dict[str, Any], number: int, since: float | None, now: float
) -> list[str]:
    """Whether a backup is late in one of the repositories; and one of the kind that all others
    rest on, for without it nothing expires, and one old backup holds everything."""
    made = backup.in_repository(info, number)
    where = f" in repository {number}" if config.repositories > 1 else ""
    found = []
    for kind, words in config.schedules.items():
        due, last = _due(words, now), backup.last_start(made, kind)
        if overdue(due, last, since):
            was = f"the last one is of {_utc(last)}" if last else "there is none"
            name, flag = ("full backup", " --type full") if kind == "full" else ("backup", "")
            way_out = f"`elsapg backup now{flag}` takes one, or says why not"
            found.append(f"a {name} was due {_utc(due)}{where}, {was}; {way_out}")
    return found


def _due(words: str, now: float) -> float:
    """The last time of a schedule that something should have come of by now: one that has only just
    come must not hide that the one before was missed.
    """
    return float(croniter(words, now - LATE_S).get_prev(float))


def overdue(due: float, done: float, since: float | None) -> bool:
    """Whether what was due then was missed. `since`: when the stack had its first backup."""
    return since is not None and since < due and done < due


def _utc(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M}Z"


def main() -> int:
    """Print the overview; a failure is one line on standard error."""
    try:
        print(json.dumps(overview(Config(**json.loads(sys.argv[1])))))
    except (ElsapgError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
