"""The runner's own clock, where no other starts its commands: backups, dumps, checks, drills.

Each has a thread, so that one that hangs holds up none of the others. What was due while nobody
ran (this process was being restarted, say) is made up for.
"""

from __future__ import annotations

import datetime
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from croniter import croniter

from elsapg.errors import LockedError
from elsapg.runner import backup, check, drill, dumps, health, jobs, repository
from elsapg.runner.config import Config
from elsapg.runner.jobs import say
from elsapg.runner.s3 import Bucket

RETRY_AFTER_S = 600
ATTEMPTS = 3

Next = Callable[[datetime.datetime], tuple[str, datetime.datetime]]


def run(config: Config) -> int:
    """Do everything at its time (UTC) until told to stop.

    As process 1 it does so in a child, and buries whatever dies in the container: what a killed
    command leaves behind, and pgBackRest's own helpers.
    """
    if os.getpid() == 1:
        worker = os.fork()
        if worker:
            return _bury(worker)
    return _work(config)


def _bury(worker: int) -> int:
    """Collect the dead until the worker is among them; signals go to it."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        os.kill(worker, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    while True:
        dead, status = os.wait()
        if dead == worker:
            return os.waitstatus_to_exitcode(status)


def _work(config: Config) -> int:
    stop = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    schedules = {**config.schedules, **config.job_schedules}
    say(f"schedules (UTC): {', '.join(f'{k} {v}' for k, v in schedules.items())}")
    loops = [
        threading.Thread(
            target=_loop,
            args=(
                stop,
                lambda now: backup.next_run(config.schedules, now),
                lambda: backup.missed(config),
                lambda kind: f"{kind} backup {backup.backup(config, kind)} done",
            ),
            daemon=True,
        )
    ]
    for job, words in config.job_schedules.items():
        loops.append(threading.Thread(target=_job, args=(stop, config, job, words), daemon=True))
    for loop in loops:
        loop.start()
    # A thread that works is not waited for: the next start makes up for what it did not do.
    stop.wait()
    return 0


def _job(stop: threading.Event, config: Config, job: str, words: str) -> None:
    work: dict[str, Callable[[], str]] = {
        "dump": lambda: f"dump {dumps.dump(config).label} done",
        "drill": lambda: drill.drill(config).sentence,
        "check": lambda: check.check(config).sentence,
    }
    _loop(
        stop,
        lambda now: (job, croniter(words, now).get_next(datetime.datetime)),
        lambda: job if _missed(config, job, words) else None,
        lambda _: work[job](),
    )


def _loop(
    stop: threading.Event,
    following: Next,
    missed: Callable[[], str | None],
    work: Callable[[str], str],
) -> None:
    left = missed()
    while not stop.is_set():
        now = datetime.datetime.now(datetime.UTC)
        kind, due = (left, now) if left else following(now)
        left = None
        say(f"next {kind} at {due:%Y-%m-%d %H:%M}Z")
        # In slices: the machine may sleep, and its clock may be set.
        while not stop.is_set() and datetime.datetime.now(datetime.UTC) < due:
            seconds = (due - datetime.datetime.now(datetime.UTC)).total_seconds()
            stop.wait(min(30, max(0, seconds)))
        for attempt in range(ATTEMPTS):
            if stop.is_set():
                break
            try:
                say(work(kind))
                break
            except LockedError as error:
                say(f"{kind}: {error}")
                break
            except Exception as error:
                # Whatever it was, the clock goes on: overdue shows in status and verify.
                again = f"; next attempt in {RETRY_AFTER_S // 60} minutes"
                told = " ".join(str(error).split())
                say(f"{kind}: {told}{again if attempt < ATTEMPTS - 1 else ''}")
                stop.wait(RETRY_AFTER_S if attempt < ATTEMPTS - 1 else 0)


def _missed(config: Config, job: str, words: str) -> bool:
    """Whether the job was due while nobody ran."""
    now = datetime.datetime.now(datetime.UTC).timestamp()
    due = croniter(words, now).get_prev(float)
    try:
        backups = backup.info(config).get("backup", [])
        since = min((float(b["timestamp"]["start"]) for b in backups), default=None)
        where = repository.read()
        if job == "dump":
            found = dumps.dumps(Bucket(where), str(config.dump["prefix"]), where.cipher)
            done = found[-1].when.timestamp() if found else 0.0
        else:
            with jobs.connect(config) as db:
                good = jobs.latest(db, where.name).get(job, {}).get("good", {})
            done = float(good.get("started") or 0.0)
    except Exception as error:
        say(f"{job}: cannot tell whether one was missed: {' '.join(str(error).split())}")
        return False
    return health.overdue(due, done, since)
