"""The one module that knows the backup tool: stanza, backups, their list, when they are due.

pgBackRest finds the primary and a standby to copy from by itself, through the nodes' agents.
"""

from __future__ import annotations

import datetime
from typing import Any, Literal

from croniter import croniter

from elsapg.runner.config import Config
from elsapg.runner.jobs import say
from elsapg.runner.pgbackrest import Repository, RepositoryError

Kind = Literal["full", "diff", "incr"]
_IN_THE_WAY = "is not later than latest backup label"
_STANDBY_LATE = "timeout before standby"
_FROM_PRIMARY = "--no-backup-standby"


def info(config: Config) -> dict[str, Any]:
    """pgBackRest's own account of the stanza: backups, archive range, status."""
    return Repository(config.stanza).info()


def repositories(config: Config) -> range:
    """pgBackRest's numbers of the repositories: WAL goes to all by itself, a backup to one."""
    return range(1, config.repositories + 1)


def in_repository(told: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The backups of `info` that lie in this repository."""
    return [b for b in told.get("backup", []) if b.get("database", {}).get("repo-key", 1) == number]


def backup(config: Config, kind: Kind, *, expire: bool = True) -> str:
    """Take a backup of the kind into every repository; returns the first one's label. With
    `expire`, those that nobody has to keep any more go.

    One that cannot be reached does not keep the others from theirs.
    """
    failures = []
    for number in repositories(config):
        one = Repository(config.stanza, number=number)
        try:
            # Of an S3 that is away a look tells in seconds, a backup after minutes.
            one.info()
            _take(one, kind, *([] if expire else ["--no-expire-auto"]))
        except RepositoryError as error:
            several = config.repositories > 1
            failures.append(f"repository {number}: {error}" if several else str(error))
    if failures:
        raise RepositoryError("; ".join(failures))
    return str(in_repository(info(config), 1)[-1]["label"])


def _take(one: Repository, kind: Kind, *options: str) -> None:
    """Take one, and again in another way where pgBackRest cannot in this.

    A full one that broke off half-way lies in the way of any other kind: by its label it is the
    newest. So what it would have been is taken now. And a standby that has replayed up to the
    backup's checkpoint, but not yet the record of it, is asked for that only once, and waited for
    in vain (pgBackRest 2.55, as of its issue 1450): then the primary is copied.
    """
    try:
        one.run(f"--type={kind}", *options, "backup")
    except RepositoryError as error:
        if _STANDBY_LATE in str(error) and _FROM_PRIMARY not in options:
            say("no standby came to where the backup starts: copying from the primary")
            _take(one, kind, *options, _FROM_PRIMARY)
        elif _IN_THE_WAY in str(error) and kind != "full":
            _take(one, "full", *options)
        else:
            raise


def first(config: Config) -> int:
    """Make the stanza, see a WAL segment reach S3, and take a full backup if there is none."""
    every = Repository(config.stanza)
    every.run("stanza-create")
    every.run("check")
    told = info(config)
    backups = told.get("backup", [])
    if all(in_repository(told, number) for number in repositories(config)):
        say(f"{len(backups)} backups in the repository, the last one {backups[-1]['label']}")
    else:
        say(f"first full backup: {backup(config, 'full')}")
    return 0


def missed(config: Config) -> Kind | None:
    """The backup that was due while nobody ran: this process was being restarted, say."""
    try:
        found = info(config).get("backup", [])
    except RepositoryError:
        return None  # no stanza yet: the first backup is not ours to take
    return missed_run(config.schedules, found, datetime.datetime.now(datetime.UTC))


def last_start(backups: list[dict[str, Any]], kind: str) -> float:
    """When the newest that would do for `kind` was begun; 0 if none would. Only a full one does
    for a full one."""
    enough = [b for b in backups if kind != "full" or b["type"] == "full"]
    return max((float(b["timestamp"]["start"]) for b in enough), default=0.0)


def missed_run(
    schedules: dict[str, str], backups: list[dict[str, Any]], now: datetime.datetime
) -> Kind | None:
    """What was due since the newest backup that would do for it; None before the first."""
    if not backups:
        return None
    for kind in sorted(schedules, key=lambda k: k != "full"):
        if last_start(backups, kind) < croniter(schedules[kind], now).get_prev(float):
            return kind  # type: ignore[return-value]
    return None


def next_run(schedules: dict[str, str], now: datetime.datetime) -> tuple[Kind, datetime.datetime]:
    """The next backup that is due after `now`; a full one wins where both are."""
    due = [
        (croniter(words, now).get_next(datetime.datetime), kind != "full", kind)
        for kind, words in schedules.items()
    ]
    when, _, kind = min(due)
    return kind, when  # type: ignore[return-value]
