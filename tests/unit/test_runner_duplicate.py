"""A segment that the archive has with other bytes: what counts as archived, what stays an error.

What pg_waldump says is played here; tests/chaos has the real one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from elsapg.runner import duplicate

OLD, NOW = "00000006000000000000001C", "00000007000000000000001C"
RECORDS = (
    "rmgr: Heap        len (rec/tot):     59/  8000, tx: 730, lsn: 0/1C000028, prev 0/1BFFFFF0\n"
    "rmgr: XLOG        len (rec/tot):     24/    24, tx:   0, lsn: 0/1C001F68, prev 0/1C000028\n"
)
END = 0x1F68 + 24


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    for line in ("00000002", "00000007"):
        (tmp_path / f"{line}.history").touch()
    for name in (OLD, NOW):
        (tmp_path / name).write_bytes(b"r" * END + b"old file")
    return tmp_path


@pytest.fixture
def archived(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the archive has, by name."""
    held: dict[str, bytes] = {}

    def fetch(name: str, into: Path) -> bool:
        into.write_bytes(held.get(name, b""))
        return name in held

    monkeypatch.setattr(duplicate, "fetch", fetch)
    monkeypatch.setattr(duplicate, "end_of_records", lambda _segment: END)
    return held


def test_all_records_are_there(
    wal: Path, archived: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    archived[OLD] = b"r" * END + b"zeros and more"
    assert duplicate.main(wal / OLD) == 0
    assert "counts as archived" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "held"),
    [
        # The present line: two servers may be writing it.
        (NOW, {NOW: b"r" * END + b"zeros"}),
        (OLD, {OLD: b"r" * (END - 1) + b"x"}),
        (OLD, {OLD: b"r" * 100}),
        (OLD, {}),
    ],
    ids=["present line", "other records", "fewer records", "cannot be read"],
)
def test_anything_else_stays_an_error(
    wal: Path, archived: dict[str, bytes], name: str, held: dict[str, bytes]
) -> None:
    archived |= held
    assert duplicate.main(wal / name) == duplicate.DUPLICATE


@pytest.mark.parametrize(
    ("name", "left"),
    [
        (OLD, True),
        (NOW, False),
        ("000000080000000000000001", False),
        (f"{OLD}.partial", False),
        ("00000006.history", False),
    ],
)
def test_a_line_that_was_left(wal: Path, name: str, left: bool) -> None:
    assert duplicate.left(name, wal) is left


@pytest.mark.parametrize(("output", "end"), [(RECORDS, END), ("", 0)])
def test_where_the_last_record_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, end: int
) -> None:
    tool = tmp_path / "pg_waldump"
    tool.write_text(f"#!/bin/sh\ncat <<'E'\n{output}E\nexit 1\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert duplicate.end_of_records(tmp_path / OLD) == end
