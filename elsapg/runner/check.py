"""The check of the repository: every file read and compared, and gaps in the WAL named.

`pgbackrest verify` reads all that there is; it does not say what should be there. So the list of
WAL segments is compared with what a recovery from the oldest backup to now would ask for, along the
timelines that led here.

A segment that is missing or damaged is a hole: times between the last backup before it and the
first one after it cannot be reached. Before there is a backup after it, that is a failure: nothing
newer can be reached at all. Afterwards it is told, and does not fail the check.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from elsapg.errors import UnhealthyError
from elsapg.runner import backup, jobs, repository, versions
from elsapg.runner.archive import SEGMENT_BYTES, Archive, Line, iso, number_of, segment_name
from elsapg.runner.config import Config
from elsapg.runner.pgbackrest import Repository, RepositoryError, settle

_WAL = re.compile(r"([0-9A-F]{24})-[0-9a-f]{40}")
_LABEL = re.compile(r"\d{8}-\d{6}F(?:_\d{8}-\d{6}[DI])?")
_INVALID = re.compile(r"invalid result (\S+): |(?:invalid|missing|other)\b.*?'([^']+)'")
# Of its report; its log says the same again, further to the right.
_COUNTED = re.compile(r"^  archiveId: .*total WAL checked: (\d+), total valid WAL: (\d+)", re.M)
_TAKE_ONE = "`elsapg backup now --type full`"


class CheckError(UnhealthyError):
    """The repository is not what it should be; the message names what."""


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
    with jobs.run(config, "check", repository.read().name) as run:
        clock = time.monotonic()
        made = Checked()
        for number in backup.repositories(config):
            found = _check(Repository(config.stanza, number=number))
            made.add(found, number if config.repositories > 1 else None)
        made.seconds = time.monotonic() - clock
        run.report, run.message = made.as_json(), made.sentence
        run.report["buckets"] = versions.prune(config)
        if made.failures:
            raise CheckError("; ".join(made.failures[:5]))
    return made


def _check(one: Repository) -> Checked:
    """One of the repositories; that it cannot be read is a finding, too."""
    try:
        damaged = _verify(one)
        return settle(
            lambda: judge(one.archive(), damaged),
            # What is damaged stays so; what is not there may be on its way.
            lambda found: any(" damaged" not in text for text in found.failures),
        )
    except (RepositoryError, CheckError) as error:
        return Checked(failures=[str(error)])


def _verify(one: Repository) -> list[str]:
    """The files that `pgbackrest verify` finds damaged, by their paths in the repository."""
    done = subprocess.run(
        one.command("--log-level-console=info", "--output=text", "--verbose", "verify"),
        capture_output=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    found = sorted({m[1] or m[2] for m in map(_INVALID.search, output.splitlines()) if m})
    # What it counts as bad it need not name.
    unnamed = sum(int(had) - int(valid) for had, valid in _COUNTED.findall(output))
    unnamed -= sum(1 for path in found if _WAL.search(path))
    if done.returncode or unnamed > 0 or ("status: error" in output and not found):
        lines = output.strip().splitlines()
        grave = [line for line in lines if "ERROR" in line or "WARN" in line]
        told = " ".join([*found, *(grave or lines[-3:])])[:600]
        raise CheckError(f"pgbackrest verify failed ({done.returncode}): {told}")
    return found


def judge(held: Archive, damaged: Sequence[str]) -> Checked:
    """What is wrong with what the archive holds. `damaged`: paths in the repository."""
    made = Checked(
        segments=sum(len(line.segments) for line in held.lines.values()),
        backups=len(held.backups),
    )
    bad = {match[1] for match in map(_WAL.search, damaged) if match}
    made.failures += _backups(path for path in damaged if not _WAL.search(path))
    for one in held.backups:
        its = held.lines.get(one.timeline, Line(one.timeline, (), float("-inf"), ()))
        own = _names(its, one.start_lsn, one.stop_lsn - 1)
        lost = held.missing(own, its, bad)
        if lost:
            made.failures.append(
                f"backup {one.label} cannot be restored: its WAL segment {lost[0]} is "
                f"{_how(lost[0], bad)}; take another: {_TAKE_ONE}"
            )
    line = held.current
    usable, end = held.usable(line), held.end(line)
    if not usable or end is None:
        made.failures.append(f"there is no backup to restore yet: {_TAKE_ONE} takes one")
        return made
    wanted = _names(line, usable[0].start_lsn, end[0] * SEGMENT_BYTES)
    after = max(backup.start_lsn for backup in usable) // SEGMENT_BYTES
    for first, last in _runs(held.missing(wanted, line, bad)):
        text = _hole(held, line, first, last, bad)
        if number_of(last) < after:
            made.holes.append(f"{text}; the backups after it are not affected")
        else:
            made.failures.append(
                f"{text}; nothing after it can be restored until there is a new backup: {_TAKE_ONE}"
            )
    return made


def _backups(damaged: Iterable[str]) -> list[str]:
    """Each damaged backup once, whatever the number of its files."""
    found: dict[str, list[str]] = {}
    for path in damaged:
        label = _LABEL.search(path)
        found.setdefault(label[0] if label else path, []).append(path)
    return [
        f"backup {label} is damaged ({paths[0]}"
        + (f" and {len(paths) - 1} more files" if len(paths) > 1 else "")
        + f"): take a new one, {_TAKE_ONE}; the damaged one goes with its retention"
        for label, paths in found.items()
    ]


def _names(line: Line, first: int, last: int) -> list[str]:
    """The segments that recovery to a line reads between two LSNs."""
    numbers = range(first // SEGMENT_BYTES, last // SEGMENT_BYTES + 1)
    return [segment_name(line.owner(number), number) for number in numbers]


def _how(name: str, bad: Set[str]) -> str:
    return "damaged" if name in bad else "missing"


def _runs(lost: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours together: the first and the last of each run."""
    runs = groupby(enumerate(lost), lambda one: number_of(one[1]) - one[0])
    neighbours = [[name for _, name in run] for _, run in runs]
    return [(names[0], names[-1]) for names in neighbours]


def _hole(held: Archive, line: Line, first: str, last: str, bad: Set[str]) -> str:
    names = f"WAL segment {first} is" if first == last else f"WAL segments {first} to {last} are"
    number = number_of(first) - 1
    before = held.came(line.owner(number), number)
    since = f" (a recovery ends there, at about {iso(before)})" if before else ""
    return f"{names} {_how(first, bad)}{since}"
