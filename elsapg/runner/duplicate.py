"""A segment that the archive has already, with other bytes: `archive_command` asks here, when
pgBackRest ends with 45.

A standby that takes over where its line ends with a segment has all records of that segment, but
not always what follows them in the file. No other server needs that; still PostgreSQL wants the
file archived at some later checkpoint, asks for ever, and archives no WAL of the present meanwhile.
So: of a line that was left, a segment counts as archived if each of its records is in the archive's
copy, which that line's own primary has sent. Whatever else differs stays an error, for two servers
may be writing one archive.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from elsapg.runner.archive import SEGMENT_BYTES

DUPLICATE = 45
"""pgBackRest's exit code for it."""
_RECORD = re.compile(r"len \(rec/tot\): *\d+/ *(\d+), .*?lsn: ([0-9A-F]+)/([0-9A-F]+), ")


def say(text: str) -> None:
    print(f"elsapg: {text}", file=sys.stderr, flush=True)


def left(name: str, wal: Path) -> bool:
    """Whether a segment is of a line that this server has left. A server has the history of its
    own line."""
    lines = [path.stem for path in wal.glob("*.history")]
    return bool(re.fullmatch(r"[0-9A-F]{24}", name)) and name[:8] < max(lines, default="")


def end_of_records(segment: Path) -> int:
    """Bytes from the beginning of a segment that its last whole record comes to, at least; 0 for
    none. Raises OSError."""
    done = subprocess.run(
        ["pg_waldump", str(segment)], capture_output=True, text=True, errors="replace", check=False
    )
    found = _RECORD.findall(done.stdout)
    if not found:
        return 0
    length, _, low = found[-1]
    return min(SEGMENT_BYTES, int(low, 16) % SEGMENT_BYTES + int(length))


def same_records(ours: Path, theirs: Path) -> bool:
    """Whether all records of `ours` are in `theirs`, at the same places."""
    end = end_of_records(ours)
    with ours.open("rb") as one, theirs.open("rb") as other:
        return one.read(end) == other.read(end)


def fetch(name: str, into: Path) -> bool:
    """Get the archive's copy; says what pgBackRest says where that fails."""
    done = subprocess.run(
        ["pgbackrest", "--stanza=elsa", "--no-archive-async", "archive-get", name, str(into)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        say(f"{name}: the archive's copy cannot be read: {done.stdout[-300:]}{done.stderr[-300:]}")
    return done.returncode == 0


def main(path: Path) -> int:
    """Judge the segment at `path`, as archive_command has it: below the data directory."""
    if not left(path.name, path.parent):
        return DUPLICATE
    with tempfile.TemporaryDirectory() as folder:
        theirs = Path(folder) / path.name
        if not fetch(path.name, theirs):
            return DUPLICATE
        if not same_records(path, theirs):
            say(f"{path.name} has records that the archive's copy has not")
            return DUPLICATE
    say(
        f"{path.name}, of a line that was left, is in the archive as that line's primary sent it, "
        "with all records of this copy: it counts as archived"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
