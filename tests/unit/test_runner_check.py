"""The check of the repository: which WAL a recovery would ask for, and how a hole is told."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from elsapg.runner import archive, check, pgbackrest
from elsapg.runner.archive import SEGMENT_BYTES, segment_name
from elsapg.runner.check import Checked
from elsapg.runner.check import judge as judge_archive
from elsapg.runner.pgbackrest import Repository

SHA = "0" * 40


def info(*backups: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "backup": [
            {
                "label": label,
                "type": "full",
                "archive": {"start": start, "stop": stop},
                "lsn": {"start": lsn(start, 40), "stop": lsn(stop, 80)},
                "timestamp": {"start": 1_700_000_000, "stop": 1_700_000_001},
            }
            for label, start, stop in backups
        ],
    }


def lsn(segment: str, more: int) -> str:
    return archive.show_lsn(archive.number_of(segment) * SEGMENT_BYTES + more)


def name(timeline: int, number: int) -> str:
    return segment_name(timeline, number)


def listed(*segments: tuple[int, int], histories: tuple[int, ...] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for timeline, number in segments:
        text = name(timeline, number)
        found[f"{text[:16]}/{text}-{SHA}.zst"] = {"type": "file", "time": 1_700_000_000}
    for timeline in histories:
        found[f"{timeline:08X}.history"] = {"type": "file", "time": 1_700_000_000}
    return found


def judge(
    told: dict[str, Any], there: dict[str, Any], damaged: list[str], history: dict[int, str]
) -> Checked:
    return judge_archive(archive.read(told, there, history), damaged)


def run_of(timeline: int, first: int, last: int) -> list[tuple[int, int]]:
    return [(timeline, n) for n in range(first, last + 1)]


def test_all_is_there() -> None:
    found = judge(info(("A", name(1, 3), name(1, 3))), listed(*run_of(1, 1, 9)), [], {})
    assert (found.failures, found.holes, found.segments) == ([], [], 9)


def test_a_hole_before_the_oldest_backup_does_not_matter() -> None:
    there = listed(*run_of(1, 1, 1), *run_of(1, 3, 9))
    assert judge(info(("A", name(1, 3), name(1, 3))), there, [], {}).failures == []


def test_a_hole_after_the_last_backup_fails_and_is_named() -> None:
    there = listed(*run_of(1, 3, 5), *run_of(1, 8, 9))
    [told] = judge(info(("A", name(1, 3), name(1, 3))), there, [], {}).failures
    assert f"{name(1, 6)} to {name(1, 7)} are missing" in told
    assert "2023-11-14T22:13:20Z" in told
    assert "elsapg backup now --type full" in told


def test_a_hole_before_the_last_backup_is_told() -> None:
    there = listed(*run_of(1, 3, 5), *run_of(1, 7, 9))
    found = judge(info(("A", name(1, 3), name(1, 3)), ("B", name(1, 8), name(1, 8))), there, [], {})
    assert found.failures == []
    assert len(found.holes) == 1
    assert name(1, 6) in found.holes[0]
    assert name(1, 6) in found.sentence


def test_a_damaged_segment_is_a_hole() -> None:
    path = f"17-1/{name(1, 6)[:16]}/{name(1, 6)}-{SHA}.zst"
    [told] = judge(
        info(("A", name(1, 3), name(1, 3))), listed(*run_of(1, 3, 9)), [path], {}
    ).failures
    assert f"{name(1, 6)} is damaged" in told


def test_a_backup_without_its_own_wal() -> None:
    there = listed(*run_of(1, 3, 3), *run_of(1, 5, 9))
    found = judge(info(("A", name(1, 3), name(1, 4))), there, [], {})
    assert (
        f"backup A cannot be restored: its WAL segment {name(1, 4)} is missing"
        in (found.failures[0])
    )


def test_a_damaged_file_of_a_backup() -> None:
    found = judge(
        info(("A", name(1, 3), name(1, 3))),
        listed(*run_of(1, 3, 4)),
        ["20260301-010000F/bundle/1", "20260301-010000F/bundle/2"],
        {},
    )
    told = "backup 20260301-010000F is damaged (20260301-010000F/bundle/1 and 1 more files): take"
    assert found.failures[0].startswith(told)
    assert len(found.failures) == 1


@pytest.mark.parametrize(
    ("segments", "failures"),
    [
        # The last segment of the old line is only partly written, and goes on in the new one.
        ([*run_of(1, 3, 5), *run_of(2, 6, 8)], 0),
        ([*run_of(1, 3, 4), *run_of(2, 6, 8)], 1),
        ([*run_of(1, 3, 5), *run_of(2, 7, 8)], 1),
        # What the old line wrote after the new one branched off is nobody's.
        ([*run_of(1, 3, 9), *run_of(2, 6, 8)], 0),
    ],
)
def test_a_promotion(segments: list[tuple[int, int]], failures: int) -> None:
    history = {2: "1\t0/6000028\tno recovery target specified\n"}
    found = judge(
        info(("A", name(1, 3), name(1, 3))), listed(*segments, histories=(2,)), [], history
    )
    assert len(found.failures) == failures


def test_a_backup_on_the_newest_line_needs_no_older_one() -> None:
    found = judge(
        info(("B", name(3, 9), name(3, 9))),
        listed(*run_of(1, 3, 3), *run_of(3, 9, 12), histories=(2, 3)),
        [],
        {2: "1\t0/4000000\tx\n", 3: "1\t0/4000000\tx\n2\t0/6000000\ty\n"},
    )
    assert found.failures == []


def test_no_backup() -> None:
    assert "no backup to restore yet" in judge({}, {}, [], {}).failures[0]


INVALID = "archiveId: 17-1, total WAL checked: 3, total valid WAL: 2\n"
SEGMENT = f"17-1/0000000100000000/{name(1, 3)}-{SHA}.zst"


@pytest.mark.parametrize(
    ("output", "code", "says"),
    [
        ("  archiveId: 17-1, total WAL checked: 3, total valid WAL: 3\nstatus: ok", 0, None),
        # As it is told twice.
        (
            f"{' ' * 38}{INVALID}P01 INFO: invalid checksum '{SEGMENT}'\n  {INVALID}status: error",
            0,
            None,
        ),
        (f"INFO: invalid checksum '{SEGMENT}'\nstatus: error", 0, None),
        # What cannot be opened at all it tells in other words.
        (f"INFO: invalid result {SEGMENT}: [29] raised from local-1\nstatus: error", 0, None),
        # One that is counted, and named by no line that we know.
        (f"  {INVALID}WARN: odd thing", 0, "odd thing"),
        ("ERROR: [049]: unable to connect", 49, "unable to connect"),
        ("status: error", 0, "verify failed"),
    ],
)
def test_what_verify_does_not_name_is_not_taken_for_good(
    monkeypatch: pytest.MonkeyPatch, output: str, code: int, says: str | None
) -> None:
    done = subprocess.CompletedProcess([], code, output, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    if says is None:
        assert check._verify(Repository()) == ([SEGMENT] if "invalid" in output else [])
        return
    with pytest.raises(check.CheckError, match=says):
        check._verify(Repository())


@pytest.mark.parametrize(("what", "looks"), [("missing", 2), ("damaged", 1)])
def test_what_is_missing_may_be_on_its_way(
    what: str, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside a file that was damaged long ago, which stays so."""
    told = [Checked(failures=[f"WAL segment 2 is {what}"]), Checked()]
    monkeypatch.setattr(check, "judge", lambda *_: told.pop(0))
    monkeypatch.setattr(check, "_verify", lambda _: ["archive/1"])
    monkeypatch.setattr(pgbackrest.time, "sleep", lambda _: None)
    found = check._check(SimpleNamespace(archive=lambda: None))  # type: ignore[arg-type]
    assert len(told) == 2 - looks
    assert bool(found.failures) == (what == "damaged")
