"""The runner image's entry: the tasks that end, and the schedule that does not."""

from __future__ import annotations

import argparse
import json
import signal
import sys
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
    health,
    schedule,
    throwaway,
    versions,
)
from elsapg.runner.config import Config
from elsapg.runner.patroni import PatroniError
from elsapg.runner.s3 import S3Error
from elsapg.runner.sealed import SealError


def main() -> int:
    """Run one command; a failure is one line on standard error."""
    parser = argparse.ArgumentParser(prog="runner")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (
        *("configure", "bootstrap", "first-backup", "schedule", "backup-info"),
        *("overview", "check", "drill"),
    ):
        commands.add_parser(name)
    commands.add_parser("backup").add_argument("kind", choices=("full", "diff", "incr"))
    dump = commands.add_parser("dump")
    dump.add_argument("--plain", action="store_true", default=None)
    dump.add_argument("--accept-smaller", action="store_true")
    arguments = parser.parse_args()
    # So that what was begun is removed, and on record as interrupted.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        match arguments.command:
            case "bootstrap":
                return bootstrap.main()
            case "configure":
                return configure.run(Config.load())
            case "first-backup":
                config = Config.load()
                versions.ensure(config)
                return backup.first(config)
            case "schedule":
                return schedule.run(Config.load())
            case "backup":
                print(backup.backup(Config.load(), arguments.kind))
            case "backup-info":
                print(json.dumps(backup.info(Config.load())))
            case "dump":
                done = dumps.dump(
                    Config.load(), plain=arguments.plain, accept_smaller=arguments.accept_smaller
                )
                print(json.dumps(done.as_json()))
            case "check":
                print(json.dumps(check.check(Config.load()).as_json()))
            case "drill":
                print(json.dumps(drill.drill(Config.load()).as_json()))
            case "overview":
                print(json.dumps(health.overview(Config.load())))
    except (
        ElsapgError,
        PatroniError,
        backup.BackupError,
        check.CheckError,
        drill.DrillError,
        dumps.DumpError,
        throwaway.RestoreError,
        S3Error,
        SealError,
        psycopg.Error,
        OSError,
        ValueError,
    ) as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, ElsapgError) else 1
    return 0


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
