"""What the repository holds, as a restore sees it: lines of history, WAL without gaps, backups; and
from that, which backup and which line lead to a target, or why none does.

A line ("timeline") begins where a server was promoted. A failover goes on with the same history;
a restore jumps back and leaves what came after on the old line, where it can still be reached.
Pure functions over pgBackRest's `info` and the archive's listing; `elsapg.runner.pgbackrest`
reads both.
"""

from __future__ import annotations

import bisect
import datetime
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from elsapg.errors import UsageError
from elsapg.runner.target import Target, parse_lsn, show_lsn

SEGMENT_BYTES = 16 * 1024 * 1024
_PER_LOG = (1 << 32) // SEGMENT_BYTES
_SEGMENT = re.compile(r"([0-9A-F]{24})-[0-9a-f]{40}(?:\.\w+)?")
_HISTORY = re.compile(r"([0-9A-F]{8})\.history")
_HISTORY_LINE = re.compile(r"\s*(\d+)\s+([0-9A-F]+/[0-9A-F]+)\s*(.*)")
# A line's history file is archived after its promotion, and what comes before that belongs to the
# line before. Nothing happens in between: a restore is longer down than this.
_ARCHIVED_AFTER_S = 5.0
MARK = "mark."
CLOCKS_APART_S = 60.0


@dataclass(frozen=True)
class Backup:
    """A backup that could be restored. LSNs as numbers, times as seconds since 1970."""

    label: str
    kind: str
    timeline: int
    start_lsn: int
    stop_lsn: int
    stopped: float
    failed: bool


@dataclass(frozen=True)
class Mark:
    """A named restore point: in the WAL under its name, and written down with the backups."""

    name: str
    timeline: int
    lsn: int
    time: str


@dataclass(frozen=True)
class Line:
    """A timeline. `forks`: its ancestors, oldest first, each with the LSN at which it was left."""

    number: int
    forks: tuple[tuple[int, int], ...]
    since: float
    """From when on this line was the database's present, seconds since 1970; -inf for the first."""
    segments: tuple[tuple[int, float], ...]
    """Numbers of the WAL segments in the archive, ascending, with the times they came there."""

    def owner(self, segment: int) -> int:
        """Which line's file recovery to this line reads for a segment."""
        for number, left_at in self.forks:
            if segment < left_at // SEGMENT_BYTES:
                return number
        return self.number

    def leaves(self, number: int) -> float:
        """Up to which LSN line `number` is part of this one; infinite for itself, -1 if not."""
        if number == self.number:
            return float("inf")
        return dict(self.forks).get(number, -1)


@dataclass(frozen=True)
class Plan:
    """How a target is reached. It is JSON between the runner, the command line and the node."""

    kind: str
    value: str
    timeline: int
    backup: str
    backup_stopped: str
    segments: list[str] = field(default_factory=list)
    """The WAL that recovery reads, as far as it is known beforehand."""
    last: dict[str, str] = field(default_factory=dict)
    """By line, the last segment in the archive: one that is missing before it is a gap."""
    to_the_end: bool = False
    """The target may lie after the line's last commit: then all of it is what was asked for."""
    no_history: bool = False
    """The archive began on this line, after a key or place was changed: the file that says where
    the line comes from lies in the one before; the backup, which is of this line, needs none."""


@dataclass(frozen=True)
class Window:
    """What can be reached on one line, times in UTC. `since` is when it became the present."""

    timeline: int
    current: bool
    earliest: str | None
    latest: str | None
    latest_lsn: str | None
    left_at: str | None
    """The LSN at which the present left it, if it did."""
    since: str | None


@dataclass(frozen=True)
class Archive:
    """The repository of one stanza."""

    backups: tuple[Backup, ...]
    lines: Mapping[int, Line]
    marks: tuple[Mark, ...]

    @property
    def current(self) -> Line:
        """The line that is the present, or was when the last WAL came."""
        return self.at(float("inf"))

    def at(self, moment: float) -> Line:
        """The line that was the present at a moment."""
        return max((line for line in self.lines.values() if line.since <= moment), key=_order)

    # -- what can be reached ----------------------------------------------------------------

    def usable(self, line: Line) -> list[Backup]:
        """The backups from which `line` can be reached, oldest first."""
        found = [
            backup
            for backup in self.backups
            if not backup.failed and backup.stop_lsn <= line.leaves(backup.timeline)
        ]
        return sorted(found, key=lambda backup: backup.stop_lsn)

    def end(self, line: Line) -> tuple[int, float] | None:
        """The last segment of a line, its ancestors' if it has none: its number and time."""
        numbers = [line.number, *(number for number, _ in reversed(line.forks))]
        for number in numbers:
            held = self.lines.get(number)
            own = (
                [s for s in held.segments if s[0] * SEGMENT_BYTES < line.leaves(number)]
                if held
                else []
            )
            if own:
                return own[-1]
        return None

    def windows(self) -> list[Window]:
        """Every line that a backup leads to, the current one last."""
        found = []
        current = self.current
        left = dict(current.forks)
        # Lines of one present are one way: a failover only went on with it.
        presents = {line.since: line for line in sorted(self.lines.values(), key=_order)}
        for line in sorted(presents.values(), key=_order):
            usable, end = self.usable(line), self.end(line)
            part = left.get(line.number)
            if not usable or end is None:
                continue
            found.append(
                Window(
                    timeline=line.number,
                    current=line.number == current.number,
                    earliest=iso(usable[0].stopped),
                    latest=iso(end[1]),
                    latest_lsn=show_lsn((end[0] + 1) * SEGMENT_BYTES),
                    left_at=show_lsn(part) if part else None,
                    since=None if line.since == float("-inf") else iso(line.since),
                )
            )
        return found

    def window_text(self, now: float | None) -> str:
        """The window of the current line, for a person who asked for something outside it."""
        usable, end = self.usable(self.current), self.end(self.current)
        if not usable or end is None:
            return "nothing can be restored yet: the repository holds no usable backup"
        latest = iso(now) if now is not None else iso(end[1])
        return (
            f"possible is {iso(usable[0].stopped)} to {latest}, "
            f"LSN {show_lsn(usable[0].stop_lsn)} to {show_lsn((end[0] + 1) * SEGMENT_BYTES)} on "
            f"timeline {self.current.number}; `elsapg restore points` lists all"
        )

    # -- how -----------------------------------------------------------------------------

    def plan(
        self,
        target: Target,
        *,
        timeline: int | None = None,
        label: str | None = None,
        now: float | None = None,
        fresh: bool = False,
    ) -> Plan:
        """How to reach `target`. `now`: the primary's clock, None if there is no primary.
        `fresh`: a segment has just been archived.

        Raises UsageError for what cannot be reached, with what can.
        """
        if target.kind == "time" and timeline is None and now is not None:
            self._one_clock(target, now, fresh)
        line = self._line(target, timeline)
        mark = self._mark(target, timeline) if target.kind == "name" else None
        if mark is not None and mark.lsn > line.leaves(mark.timeline):
            if mark.timeline not in self.lines:
                raise UsageError(
                    f"--to {target.value!r}: that mark is on timeline {mark.timeline}, of which "
                    "nothing is in the archive yet: try again in a moment; `elsapg status` says "
                    "whether WAL archiving works"
                )
            line = self.lines[mark.timeline]
        self._within(target, line, now)
        backup = self._backup(target, line, mark, label, now)
        needed = self._needed(target, line, mark, backup)
        self._without_gaps(needed, target, line)
        return Plan(
            kind=target.kind,
            value=target.value,
            timeline=line.number,
            backup=backup.label,
            backup_stopped=iso(backup.stopped),
            segments=needed,
            last={
                f"{number:08X}": segment_name(number, self.lines[number].segments[-1][0])
                for number in (line.number, *(n for n, _ in line.forks))
                if number in self.lines and self.lines[number].segments
            },
            to_the_end=target.kind in ("time", "lsn"),
            no_history=line.number > 1 and not line.forks and backup.timeline == line.number,
        )

    def _one_clock(self, target: Target, now: float, fresh: bool) -> None:
        """By S3's clock a time finds its line, by the primary's it was committed."""
        came = [came for line in self.lines.values() for _, came in line.segments]
        apart = max(came, default=now) - now
        if apart > CLOCKS_APART_S or (fresh and apart < -CLOCKS_APART_S):
            raise UsageError(
                f"--to {target.value}: the clocks of S3 and of the primary are {abs(apart):.0f} s "
                "apart, so that nobody can say on which line of history that was: put them right, "
                "or name the line (--timeline, from `elsapg restore points`)"
            )

    def _line(self, target: Target, timeline: int | None) -> Line:
        if timeline is not None:
            if timeline not in self.lines:
                known = ", ".join(str(number) for number in sorted(self.lines))
                raise UsageError(f"--timeline {timeline}: the archive knows {known}")
            return self.lines[timeline]
        if target.kind == "time":
            return self.at(target.time.timestamp())
        return self.current

    def _mark(self, target: Target, timeline: int | None) -> Mark:
        found = [m for m in self.marks if m.name == target.value]
        if timeline is not None:
            found = [m for m in found if m.lsn <= self.lines[timeline].leaves(m.timeline)]
        if not found:
            known = ", ".join(mark.name for mark in self.marks) or "none"
            raise UsageError(f"--to {target.value!r}: no such mark; marks: {known}")
        return found[-1]

    def _within(self, target: Target, line: Line, now: float | None) -> None:
        end = self.end(line)
        if end is None:
            raise UsageError(f"timeline {line.number}: the archive holds no WAL of it")
        if target.kind == "time":
            moment = target.time.timestamp()
            here = line.number == self.current.number
            latest = now if here and now is not None else end[1]
            if moment > latest:
                raise UsageError(
                    f"--to {target.value}: after the last WAL of timeline {line.number} "
                    f"({iso(latest)}); {self.window_text(now)}"
                )
        if target.kind == "lsn":
            # The primary's present segment is on its way; the service knows its exact position.
            more = 2 if now is not None and line.number == self.current.number else 1
            if target.lsn > (end[0] + more) * SEGMENT_BYTES:
                others = [
                    str(other.number)
                    for other in self.lines.values()
                    if (last := self.end(other)) and target.lsn <= (last[0] + 1) * SEGMENT_BYTES
                ]
                hint = f" (it is on timeline {', '.join(others)}: --timeline)" if others else ""
                raise UsageError(
                    f"--to {target.value}: not on timeline {line.number}{hint}; "
                    f"{self.window_text(now)}"
                )

    def _backup(
        self, target: Target, line: Line, mark: Mark | None, label: str | None, now: float | None
    ) -> Backup:
        usable = self.usable(line)
        if label is not None and label not in {b.label for b in usable}:
            known = ", ".join(b.label for b in usable) or "none"
            raise UsageError(
                f"--backup {label}: no usable backup of timeline {line.number}; there are {known}"
            )
        limit = mark.lsn if mark else target.lsn if target.kind == "lsn" else float("inf")
        moment = target.time.timestamp() if target.kind == "time" else float("inf")
        fit = [b for b in usable if b.stop_lsn <= limit and b.stopped <= moment]
        if label is not None:
            fit = [b for b in fit if b.label == label]
            if not fit:
                raise UsageError(
                    f"--backup {label}: it ended after the target {target}; choose an earlier one, "
                    "or leave --backup out"
                )
        if not fit:
            raise UsageError(
                f"--to {target}: before the end of the first backup; {self.window_text(now)}"
            )
        return fit[-1]

    def _needed(self, target: Target, line: Line, mark: Mark | None, backup: Backup) -> list[str]:
        """The segments from the backup to the target, in order; those of a time by when they came.

        Names of segments that ought to be there, whether they are or not.
        """
        end = self.end(line)
        assert end is not None
        first, last = backup.start_lsn // SEGMENT_BYTES, end[0]
        if mark or target.kind == "lsn":
            last = min(last, (mark.lsn if mark else target.lsn) // SEGMENT_BYTES)
        elif target.kind == "time":
            moment = target.time.timestamp()
            for number in range(first, last + 1):
                came = self.came(line.owner(number), number)
                if (
                    came is not None
                    and came >= moment
                    and number * SEGMENT_BYTES >= backup.stop_lsn
                ):
                    last = number
                    break
        # A backup's own WAL is needed whole, or it is not consistent.
        last = max(last, (backup.stop_lsn - 1) // SEGMENT_BYTES)
        return [segment_name(line.owner(number), number) for number in range(first, last + 1)]

    def came(self, timeline: int, number: int) -> float | None:
        """When a segment reached the archive; None if it is not there."""
        line = self.lines.get(timeline)
        if line is None:
            return None
        at = bisect.bisect_left(line.segments, (number, float("-inf")))
        held = at < len(line.segments) and line.segments[at][0] == number
        return line.segments[at][1] if held else None

    def missing(
        self, needed: Sequence[str], line: Line, damaged: Set[str] = frozenset()
    ) -> list[str]:
        """Of the segments that recovery to `line` reads, those that are not there, or damaged."""

        def lacks(timeline: int, number: int) -> bool:
            bad = segment_name(timeline, number) in damaged
            return bad or self.came(timeline, number) is None

        # The first segment of a line may not be full yet; what it holds is on the line before too.
        forks = {left_at // SEGMENT_BYTES: number for number, left_at in line.forks}
        return [
            n
            for n in needed
            if lacks(int(n[:8], 16), number_of(n))
            and not (
                number_of(n) in forks
                and n == needed[-1]
                and not lacks(forks[number_of(n)], number_of(n))
            )
        ]

    def _without_gaps(self, needed: Sequence[str], target: Target, line: Line) -> None:
        missing = self.missing(needed, line)
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            before = self._reachable_before(missing[0])
            raise UsageError(
                f"--to {target}: WAL segment {', '.join(missing[:3])}{more} is missing in the "
                f"archive, so that no restore can pass it; {before}"
            )

    def _reachable_before(self, name: str) -> str:
        line, number = self.lines.get(int(name[:8], 16)), number_of(name)
        held = [came for segment, came in line.segments if segment < number] if line else []
        if not held:
            return "choose a target before it"
        return f"the last moment before it is about {iso(held[-1])}"


# -- reading -----------------------------------------------------------------------------------


def read(
    info: Mapping[str, Any], listing: Mapping[str, Any], histories: Mapping[int, str]
) -> Archive:
    """From pgBackRest's `info` (one stanza), `repo-ls` of its archive, and its history files."""
    segments: dict[int, list[tuple[int, float]]] = {}
    created: dict[int, float] = {}
    for path, entry in listing.items():
        file = path.rpartition("/")[2]
        if match := _SEGMENT.fullmatch(file):
            name = match[1]
            segments.setdefault(int(name[:8], 16), []).append(
                (number_of(name), float(entry["time"]))
            )
        elif match := _HISTORY.fullmatch(file):
            created[int(match[1], 16)] = float(entry["time"])
    forks = {number: parse_history(text) for number, text in histories.items()}
    # The first line has no history file; nor has one whose ancestors are all expired.
    for number in segments:
        forks.setdefault(number, ())
    lines: dict[int, Line] = {}
    for number in sorted(forks):
        lines[number] = Line(
            number,
            forks[number],
            _since(forks[number], created.get(number), lines),
            tuple(sorted(segments.get(number, []))),
        )
    if not lines:
        lines[1] = Line(1, (), float("-inf"), ())
    raw_backups = info.get("backup", [])
    return Archive(
        backups=tuple(_backup(raw) for raw in raw_backups),
        lines=lines,
        marks=tuple(sorted(_marks(raw_backups), key=lambda mark: (mark.time, mark.name))),
    )


def _since(
    forks: tuple[tuple[int, int], ...],
    created: float | None,
    before: Mapping[int, Line],
) -> float:
    """A failover goes on with the present; any other line is a restore, and a new present."""
    if created is None or not forks or not before:
        return float("-inf")
    present = max(before.values(), key=_order)
    parent, left_at = forks[-1]
    last = present.segments[-1][0] if present.segments else -1
    goes_on = parent == present.number and left_at // SEGMENT_BYTES > last
    return present.since if goes_on else created - _ARCHIVED_AFTER_S


def parse_history(text: str) -> tuple[tuple[int, int], ...]:
    """A history file's lines: the ancestors, oldest first, each with the LSN where it was left."""
    found = []
    for line in text.splitlines():
        match = _HISTORY_LINE.fullmatch(line)
        if match:
            found.append((int(match[1]), parse_lsn(match[2])))
    return tuple(found)


def _backup(raw: Mapping[str, Any]) -> Backup:
    return Backup(
        label=str(raw["label"]),
        kind=str(raw["type"]),
        timeline=int(raw["archive"]["stop"][:8], 16),
        start_lsn=parse_lsn(raw["lsn"]["start"]),
        stop_lsn=parse_lsn(raw["lsn"]["stop"]),
        stopped=float(raw["timestamp"]["stop"]),
        failed=bool(raw.get("error")),
    )


def _marks(backups: Iterable[Mapping[str, Any]]) -> Iterable[Mark]:
    for raw in backups:
        for key, value in (raw.get("annotation") or {}).items():
            words = str(value).split()
            if key.startswith(MARK) and len(words) == 3:
                yield Mark(key.removeprefix(MARK), int(words[0]), parse_lsn(words[1]), words[2])


def _order(line: Line) -> tuple[float, int]:
    """By when it became the present; of one present, the last failover's line."""
    return (line.since, line.number)


def number_of(name: str) -> int:
    return int(name[8:16], 16) * _PER_LOG + int(name[16:], 16)


def segment_name(timeline: int, number: int) -> str:
    return f"{timeline:08X}{number // _PER_LOG:08X}{number % _PER_LOG:08X}"


def iso(moment: float) -> str:
    """Seconds since 1970 as a time in UTC, to the second."""
    whole = datetime.datetime.fromtimestamp(int(moment), datetime.UTC)
    return whole.isoformat().replace("+00:00", "Z")
