"""The check of the repository: every file read and compared, and gaps in the WAL named.

`pgbackrest verify` reads all that there is; it does not say what should be there. So the list of
WAL segments is compared with what a recovery from the oldest backup to now would ask for, along the
timelines that led here.

A segment that is missing or damaged is a hole: times between the last backup before it and the
first one after it cannot be reached. Before there is a backup after it, that is a failure: nothing
newer can be reached at all. Afterwards it is told, and does not fail the check.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elsapg.errors import UnhealthyError
from elsapg.runner import backup, jobs, repository, versions
from elsapg.runner.config import Config

_SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})-[0-9a-f]{40}(?:\.\w+)?")
_HISTORY = re.compile(r"([0-9A-F]{8})\.history")
_WAL_NAME = re.compile(r"[0-9A-F]{24}")
_INVALID = re.compile(r"(?:invalid|missing|other)\b.*?'([^']+)'")
# Of 16 MiB each, as initdb makes them.
PER_FILE = 0x100
SEGMENT_BYTES = 16 * 1024 * 1024


class CheckError(UnhealthyError):
    """The repository is not what it should be; the message names what."""


@dataclass(frozen=True, order=True)
class Segment:
    """A WAL segment: its timeline, and its number since the beginning."""

    timeline: int
    number: int

    @classmethod
    def of(cls, name: str) -> Segment:
        return cls(int(name[:8], 16), int(name[8:16], 16) * PER_FILE + int(name[16:24], 16))

    def __str__(self) -> str:
        return f"{self.timeline:08X}{self.number // PER_FILE:08X}{self.number % PER_FILE:08X}"


@dataclass
class Checked:
    """What the check came to."""

    segments: int = 0
    backups: int = 0
    seconds: float = 0.0
    holes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        holes = f"; {'; '.join(self.holes)}" if self.holes else ""
        return (
            f"repository checked: {self.backups} backups, {self.segments} WAL segments, "
            f"in {self.seconds:.0f} s{holes}"
        )

    def add(self, other: Checked, number: int | None) -> None:
        """Take over what another repository's check came to."""
        where = "" if number is None else f"repository {number}: "
        self.segments += other.segments
        self.backups += other.backups
        self.holes += [where + text for text in other.holes]
        self.failures += [where + text for text in other.failures]

    def as_json(self) -> dict[str, Any]:
        return {
            "backups": self.backups,
            "segments": self.segments,
            "seconds": round(self.seconds, 1),
            "holes": self.holes,
            "failures": self.failures,
        }


def check(config: Config) -> Checked:
    """Check everything. Raises CheckError that names what is missing or damaged."""
    where = repository.read()
    with jobs.run(config, "check", where.name) as run:
        clock = time.monotonic()
        told, made = backup.info(config), Checked()
        for number in backup.repositories(config):
            made.add(_check(config, told, number), number if config.repositories > 1 else None)
        made.seconds = time.monotonic() - clock
        run.report, run.message = made.as_json(), made.sentence
        run.report["bucket"] = versions.prune(config)
        if made.failures:
            raise CheckError("; ".join(made.failures[:5]))
    return made


def _check(config: Config, told: Mapping[str, Any], number: int) -> Checked:
    """One of the repositories."""
    archives = [
        a for a in told.get("archive", []) if a.get("database", {}).get("repo-key", 1) == number
    ]
    mine = {"archive": archives, "backup": backup.in_repository(dict(told), number)}
    damaged = _verify(config, number)
    where = (f"--repo={number}", f"archive/{config.stanza}")
    listed = json.loads(
        backup.pgbackrest(config, "--output=json", "--recurse", where[0], "repo-ls", where[1])
    )

    def history(name: str) -> str:
        path = f"{where[1]}/{archives[-1]['id']}/{name}"
        return backup.pgbackrest(config, where[0], "repo-get", path)

    return judge(mine, listed, damaged, history)


def _verify(config: Config, number: int) -> list[str]:
    """The files that `pgbackrest verify` finds damaged, by their paths in the repository."""
    done = subprocess.run(
        [
            "pgbackrest", f"--stanza={config.stanza}", f"--repo={number}",
            "--log-level-console=info", "--output=text", "--verbose", "verify",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    found = sorted({m[1] for m in map(_INVALID.search, output.splitlines()) if m})
    if (done.returncode or "status: error" in output) and not found:
        lines = output.strip().splitlines()
        told = " ".join([line for line in lines if "ERROR" in line] or lines[-3:])[:600]
        raise CheckError(f"pgbackrest verify failed ({done.returncode}): {told}")
    return found


def judge(
    told: Mapping[str, Any],
    listed: Mapping[str, Mapping[str, Any]],
    damaged: Sequence[str],
    history: Any,
) -> Checked:
    """What is wrong, from pgBackRest's `info`, the list of the archive and the damaged files."""
    backups = told.get("backup", [])
    made = Checked(backups=len(backups))
    if not told.get("archive") or not backups:
        made.failures.append("there is no backup yet: `elsapg backup now --type full` takes one")
        return made
    newest = str(told["archive"][-1]["id"])
    times: dict[Segment, float] = {}
    timelines = set()
    for path, about in listed.items():
        folder, _, name = path.rpartition("/")
        if not folder.startswith(newest):
            continue
        if found := _SEGMENT.fullmatch(name):
            times[Segment.of(found[1] + found[2] + found[3])] = float(about.get("time", 0))
        elif found := _HISTORY.fullmatch(name):
            timelines.add(int(found[1], 16))
    made.segments = len(times)
    bad = {Segment.of(_WAL_NAME.search(p)[0]) for p in damaged if _is_wal(p)}  # type: ignore[index]
    made.failures += [
        f"{path} is damaged: {_BACKUP_WAY_OUT}" for path in damaged if not _is_wal(path)
    ]
    have = times.keys() - bad
    starts = [Segment.of(b["archive"]["start"]) for b in backups]
    for one in backups:
        first, last = Segment.of(one["archive"]["start"]), Segment.of(one["archive"]["stop"])
        lost = [s for s in _span(first, last.number) if s not in have]
        if lost:
            made.failures.append(
                f"backup {one['label']} cannot be restored: its WAL segment {lost[0]} is "
                f"{'damaged' if lost[0] in bad else 'missing'}; take another: "
                "`elsapg backup now --type full`"
            )
    wanted = _chain(min(starts), times, timelines, history)
    order = {segment: index for index, segment in enumerate(wanted)}
    for first, last in _runs([s for s in wanted if s not in have], order):
        after = [s for s in starts if order.get(s, -1) > order[last]]
        text = _hole(first, last, bad, times, order, wanted)
        if after:
            made.holes.append(f"{text}; the backups after it are not affected")
        else:
            made.failures.append(
                f"{text}; nothing after it can be restored until there is a new backup: "
                "`elsapg backup now --type full`"
            )
    return made


_BACKUP_WAY_OUT = (
    "take a new backup, `elsapg backup now --type full`; the damaged one goes with its retention"
)


def _is_wal(path: str) -> bool:
    return bool(_SEGMENT.search(path))


def _span(first: Segment, last: int) -> list[Segment]:
    return [Segment(first.timeline, n) for n in range(first.number, last + 1)]


def _chain(
    start: Segment,
    times: Mapping[Segment, float],
    timelines: Iterable[int],
    history: Any,
) -> list[Segment]:
    """Every segment that a recovery from `start` to the end of the newest timeline asks for."""
    newest = max({s.timeline for s in times} | set(timelines) | {start.timeline})
    switches = []
    if newest != start.timeline:
        for line in str(history(f"{newest:08X}.history")).splitlines():
            words = line.split("\t")
            if len(words) >= 2 and words[0].strip().isdigit():
                switches.append((int(words[0]), _number(words[1])))
    wanted: list[Segment] = []
    at = start
    for timeline, number in switches:
        # What was before the oldest backup, and lines that it does not lie on, do not matter.
        if timeline == at.timeline:
            wanted += _span(at, number - 1)
            following = [t for t, _ in switches if t > timeline]
            at = Segment(following[0] if following else newest, max(number, at.number))
    last = max((s.number for s in times if s.timeline == at.timeline), default=at.number - 1)
    return wanted + _span(at, last)


def _number(lsn: str) -> int:
    high, _, low = lsn.strip().partition("/")
    return ((int(high, 16) << 32) | int(low, 16)) // SEGMENT_BYTES


def _runs(lost: Sequence[Segment], order: Mapping[Segment, int]) -> list[tuple[Segment, Segment]]:
    """Neighbours together: the first and the last of each run."""
    found: list[tuple[Segment, Segment]] = []
    for segment in lost:
        if found and order[segment] == order[found[-1][1]] + 1:
            found[-1] = (found[-1][0], segment)
        else:
            found.append((segment, segment))
    return found


def _hole(
    first: Segment,
    last: Segment,
    bad: set[Segment],
    times: Mapping[Segment, float],
    order: Mapping[Segment, int],
    wanted: Sequence[Segment],
) -> str:
    what = "damaged" if first in bad else "missing"
    names = f"WAL segment {first} is" if first == last else f"WAL segments {first} to {last} are"
    before = next(
        (times[s] for s in reversed(wanted[: order[first]]) if s in times and s not in bad), None
    )
    since = (
        f" (a recovery ends there, at about "
        f"{datetime.datetime.fromtimestamp(before, datetime.UTC):%Y-%m-%d %H:%M}Z)"
        if before
        else ""
    )
    return f"{names} {what}{since}"
