"""The runner image's entry: the tasks that end, and the schedule that does not."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from types import FrameType

import psycopg

from elsapg.errors import ElsapgError
from elsapg.runner import (
    backup,
    bootstrap,
    check,
    configure,
    drill,
    dumps,
    points,
    schedule,
    versions,
)
from elsapg.runner.config import Config
from elsapg.runner.patroni import PatroniError

# What ends with an exit code of its own, and what ends with an answer.
_TASKS: dict[str, Callable[[], int]] = {
    "bootstrap": bootstrap.main,
    "configure": lambda: configure.run(Config.load()),
    "first-backup": lambda: _first_backup(Config.load()),
    "schedule": lambda: schedule.run(Config.load()),
}
_ANSWERS: dict[str, Callable[[argparse.Namespace], str]] = {
    "backup": lambda given: backup.backup(Config.load(), given.kind, expire=given.expire),
    "backup-info": lambda _: json.dumps(backup.info(Config.load())),
    "check": lambda _: json.dumps(check.check(Config.load()).as_json()),
    "drill": lambda _: json.dumps(drill.drill(Config.load()).as_json()),
    "dump": lambda given: json.dumps(
        dumps.dump(Config.load(), plain=given.plain, accept_smaller=given.accept_smaller).as_json()
    ),
}
_POINTS = ("restore-points", "restore-plan", "restore-mark", "recovery-check")


def main() -> int:
    """Run one command; a failure is one line on standard error."""
    parser = argparse.ArgumentParser(prog="runner")
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name) for name in (*_TASKS, *_ANSWERS, *_POINTS)}
    made["backup"].add_argument("kind", choices=("full", "diff", "incr"))
    made["backup"].add_argument("--no-expire", action="store_false", dest="expire")
    made["dump"].add_argument("--plain", action="store_true", default=None)
    made["dump"].add_argument("--accept-smaller", action="store_true")
    for name in _POINTS:
        made[name].add_argument("words", nargs="*")
    given = parser.parse_args()
    # So that what was begun is removed, and on record as interrupted.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if given.command in _TASKS:
            return _TASKS[given.command]()
        if given.command in _POINTS:
            print(points.answer(given.command, given.words))
        else:
            print(_ANSWERS[given.command](given))
    except (ElsapgError, PatroniError, psycopg.Error, OSError, ValueError) as error:
        why = _why() if given.command in _ANSWERS else ""
        print(f"{given.command}: {error}{why}", file=sys.stderr)
        return error.exit_code if isinstance(error, ElsapgError) else 1
    return 0


def _why() -> str:
    """What a failure comes from, if the cluster is held still: its schedule does not know."""
    try:
        held = configure.paused(Config.load().backup_patroni())
    except (OSError, ValueError):
        return ""
    return f"; {configure.PAUSED}" if held else ""


def _first_backup(config: Config) -> int:
    versions.ensure(config)
    return backup.first(config)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
