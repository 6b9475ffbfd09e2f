"""The buckets' versioning: on where a bucket is the stack's own, used where it is on anyway.

What is overwritten or removed, by whomever, stays for `versions_days`; `docs/backups.md` says how
it comes back (pgBackRest's `repo-target-time`). The bucket of somebody else is never reconfigured.
"""

from __future__ import annotations

import datetime
from typing import Any

from elsapg.runner import backup, repository
from elsapg.runner.config import Config
from elsapg.runner.jobs import say
from elsapg.runner.s3 import Bucket, S3Error


def ensure(config: Config) -> None:
    """Switch versioning on, if that is asked for; an S3 that has none is told, and no error."""
    if not config.versions.get("own") or not config.versions.get("days"):
        return
    own = repository.read().endpoint
    for number in backup.repositories(config):
        where = repository.read(number=number)
        bucket = Bucket(where)
        # One with an endpoint of its own is somebody else's.
        if where.endpoint != own or bucket.versioning() == "Enabled":
            continue
        try:
            bucket.keep_versions()
            say(f"bucket {bucket.name}: versioning is on")
        except S3Error as error:
            say(f"no versioning: {error}")


def prune(config: Config) -> list[dict[str, Any]]:
    """Remove old versions of what is this stack's; says how each repository's bucket stands."""
    return [_prune(config, number) for number in backup.repositories(config)]


def _prune(config: Config, number: int) -> dict[str, Any]:
    where = repository.read(number=number)
    bucket = Bucket(where)
    status = bucket.versioning()
    told: dict[str, Any] = {
        "bucket": bucket.name,
        "versioning": status,
        "object_lock": bucket.object_lock(),
    }
    days = int(config.versions.get("days") or 0)
    if status in ("Enabled", "Suspended") and days:
        before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
        folders = {where.prefix}
        if number == 1:  # dumps go there only
            folders |= {str(config.dump.get("prefix") or where.prefix)}
        told["removed"] = sum(bucket.forget(f"{f.strip('/')}/", before) for f in folders)
    return told
