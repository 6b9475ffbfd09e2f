"""What a restore may be asked for: a time with its zone, an LSN, a mark's name, or `latest`.

Standard library only: the command line checks a target with it before anything is asked of the
stack, and a node that restores itself reads the same words again.
"""

from __future__ import annotations

import datetime
import re
import zoneinfo
from dataclasses import dataclass
from typing import Literal

from elsapg.errors import UsageError

Kind = Literal["latest", "time", "lsn", "name"]
LATEST = "latest"

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,49}")
_TIME = re.compile(
    r"(?P<date>\d{4}-\d{2}-\d{2})(?:[T ](?P<clock>\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?))?"
    r"\s*(?P<zone>.*)"
)
_OFFSET = re.compile(r"(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})?")
_LARGEST_OFFSET_H = 14


@dataclass(frozen=True)
class Target:
    """One of the four. `value`: a time in UTC (ISO 8601), an LSN, a name, or ""."""

    kind: Kind
    value: str = ""

    @property
    def time(self) -> datetime.datetime:
        return datetime.datetime.fromisoformat(self.value)

    @property
    def lsn(self) -> int:
        return parse_lsn(self.value)

    def __str__(self) -> str:
        """In the words in which it may be asked for again."""
        return self.value or LATEST


def parse(text: str) -> Target:
    """Read a target. Raises UsageError with what would be right."""
    text = text.strip()
    if text == LATEST:
        return Target("latest")
    if _LSN.fullmatch(text):
        return Target("lsn", show_lsn(parse_lsn(text)))
    if text[:1].isdigit():
        return Target("time", _time(text).isoformat())
    if _NAME.fullmatch(text):
        return Target("name", text)
    raise UsageError(
        f"--to {text!r}: give a time with its zone (2026-01-31T12:00:00Z), an LSN (0/3000148), "
        "a mark's name, or latest"
    )


def check_name(name: str) -> str:
    """Return `name` if a mark can have it. Raises UsageError."""
    if not _NAME.fullmatch(name) or name == LATEST:
        raise UsageError(
            f"mark {name!r}: a name is 1 to 50 of a-z, 0-9, '_', '.' and '-', begins with a letter,"
            f" and is not {LATEST!r}, such as before-release-12"
        )
    return name


def _time(text: str) -> datetime.datetime:
    match = _TIME.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--to {text!r}: a time is written 2026-01-31T12:00:00Z or "
            "'2026-01-31 13:00:00+01:00'; an LSN 0/3000148"
        )
    if match["clock"] is None:
        raise UsageError(f"--to {text!r}: the time of day is missing, such as T12:00:00Z")
    if not match["zone"]:
        raise UsageError(
            f"--to {text!r}: the zone is missing, and a guess could lose hours of data: add Z for "
            "UTC, an offset such as +01:00, or a name such as Europe/Berlin"
        )
    try:
        naive = datetime.datetime.fromisoformat(f"{match['date']}T{match['clock']}")
        return _placed(naive, match["zone"], text).astimezone(datetime.UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--to {text!r}: no such time: {error}") from None


def _placed(naive: datetime.datetime, zone: str, text: str) -> datetime.datetime:
    """`naive` as a time of that zone. Raises UsageError if it names none, or two."""
    if zone.upper() in ("Z", "UTC", "GMT"):
        return naive.replace(tzinfo=datetime.UTC)
    offset = _OFFSET.fullmatch(zone)
    if offset:
        hours, minutes = int(offset["hours"]), int(offset["minutes"] or 0)
        if hours > _LARGEST_OFFSET_H or minutes > 59:
            raise UsageError(f"--to {text!r}: no zone is at {zone}")
        shift = datetime.timedelta(hours=hours, minutes=minutes)
        return naive.replace(tzinfo=datetime.timezone(-shift if offset["sign"] == "-" else shift))
    try:
        place = zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            f"--to {text!r}: zone {zone!r} is not known here: use Z, an offset such as +01:00, or "
            "a name such as Europe/Berlin"
        ) from None
    first, second = (naive.replace(tzinfo=place, fold=fold) for fold in (0, 1))
    if first.utcoffset() != second.utcoffset():
        # The hour that the clocks are put back is there twice, the one forward not at all.
        raise UsageError(
            f"--to {text!r}: the clocks of {zone} change in that hour: give the offset "
            f"({_written(first)} or {_written(second)})"
        )
    return first


def _written(moment: datetime.datetime) -> str:
    return moment.isoformat(sep=" ")


def parse_lsn(text: str) -> int:
    """An LSN as a number. Raises ValueError."""
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no LSN")
    return (int(match[1], 16) << 32) + int(match[2], 16)


def show_lsn(lsn: int) -> str:
    """An LSN as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
