"""The runner image's entry: the tasks that end, and the schedule that does not."""

from __future__ import annotations

import argparse
import json
import sys

import psycopg

from elsapg.errors import ElsapgError
from elsapg.runner import backup, bootstrap, configure, points
from elsapg.runner.config import Config
from elsapg.runner.patroni import PatroniError


def main() -> int:
    """Run one command; a failure is one line on standard error."""
    parser = argparse.ArgumentParser(prog="runner")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("configure", "bootstrap", "first-backup", "schedule", "backup-info"):
        commands.add_parser(name)
    commands.add_parser("backup").add_argument("kind", choices=("full", "diff", "incr"))
    for name in ("restore-points", "restore-plan", "restore-mark", "recovery-check"):
        commands.add_parser(name).add_argument("words", nargs="*")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "bootstrap":
                return bootstrap.main()
            case "configure":
                return configure.run(Config.load())
            case "first-backup":
                return backup.first(Config.load())
            case "schedule":
                return backup.schedule(Config.load())
            case "backup":
                print(backup.backup(Config.load(), arguments.kind))
            case "restore-points" | "restore-plan" | "restore-mark" | "recovery-check":
                print(points.answer(arguments.command, arguments.words))
            case "backup-info":
                print(json.dumps(backup.info(Config.load())))
    except (
        ElsapgError,
        PatroniError,
        backup.BackupError,
        psycopg.Error,
        OSError,
        ValueError,
    ) as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
