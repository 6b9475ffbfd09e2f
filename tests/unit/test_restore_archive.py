"""Lines of history, gaps, and which backup leads to a target."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from elsapg.errors import UsageError
from elsapg.runner import archive, recovery
from elsapg.runner.archive import Archive
from elsapg.runner.pgbackrest import explain
from elsapg.runner.target import Target, show_lsn

MB16 = archive.SEGMENT_BYTES
# A day on which a minute is a segment: 12:00 is minute 0, and segment N came at minute N.
NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC).timestamp()


def minute(number: float) -> float:
    return NOON + number * 60


def at(number: float) -> Target:
    moment = datetime.datetime.fromtimestamp(minute(number), datetime.UTC)
    return Target("time", moment.isoformat())


def lsn(segment: float) -> str:
    return show_lsn(int(segment * MB16))


def segment(timeline: int, number: int) -> str:
    return f"{timeline:08X}{0:08X}{number:08X}"


def backup(timeline: int, number: int, **more: Any) -> dict[str, Any]:
    return {
        "label": f"backup-{timeline}-{number}",
        "type": "full",
        "archive": {"start": segment(timeline, number), "stop": segment(timeline, number)},
        "lsn": {"start": lsn(number), "stop": lsn(number + 0.5)},
        "timestamp": {"start": minute(number), "stop": minute(number + 0.5)},
        **more,
    }


def held(
    segments: dict[int, range | list[int]],
    forks: dict[int, tuple[str, float]] | None = None,
    backups: list[dict[str, Any]] | None = None,
) -> Archive:
    """`forks`: history text and the minute it came, by line."""
    listing: dict[str, Any] = {}
    for timeline, numbers in segments.items():
        for number in numbers:
            name = f"{segment(timeline, number)[:16]}/{segment(timeline, number)}-{'a' * 40}.zst"
            listing[name] = {"time": minute(number + 1)}
    for timeline, (_text, came) in (forks or {}).items():
        listing[f"{timeline:08X}.history"] = {"time": minute(came)}
    histories = {timeline: text for timeline, (text, _) in (forks or {}).items()}
    return archive.read({"backup": backups or [backup(1, 2)]}, listing, histories)


def history(*ancestors: tuple[int, float]) -> str:
    return "".join(f"{number}\t{lsn(left)}\tsome reason\n" for number, left in ancestors)


def restored() -> Archive:
    """An accident at minute 20, put right at 30 by a restore to 20: line 2 branches off there."""
    return held(
        {1: range(31), 2: range(20, 40)},
        {2: (history((1, 20.5)), 32)},
        [backup(1, 2), backup(1, 10), backup(1, 25), backup(2, 35)],
    )


def test_a_time_picks_the_newest_backup_before_it_and_the_wal_up_to_it() -> None:
    plan = held({1: range(31)}, backups=[backup(1, 2), backup(1, 10)]).plan(at(15))
    assert (plan.timeline, plan.backup) == (1, "backup-1-10")
    assert plan.segments == [segment(1, n) for n in range(10, 15)]
    assert plan.last == {"00000001": segment(1, 30)}


@pytest.mark.parametrize(
    ("minute_", "timeline", "chosen"),
    [
        (15, 1, "backup-1-10"),
        # After the accident and before the restore: the old line, as it was then.
        (27, 1, "backup-1-25"),
        # After the restore: the new line; the backup of 25 is no part of it.
        (34, 2, "backup-1-10"),
        (37, 2, "backup-2-35"),
    ],
)
def test_a_time_finds_its_line(minute_: float, timeline: int, chosen: str) -> None:
    plan = restored().plan(at(minute_))
    assert (plan.timeline, plan.backup) == (timeline, chosen)


def test_the_old_line_can_be_asked_for() -> None:
    plan = restored().plan(Target("latest"), timeline=1)
    assert (plan.timeline, plan.backup) == (1, "backup-1-25")
    assert plan.segments[-1] == segment(1, 30)


def test_latest_is_the_end_of_the_present() -> None:
    plan = restored().plan(Target("latest"))
    assert (plan.timeline, plan.backup) == (2, "backup-2-35")
    assert plan.segments == [segment(2, n) for n in range(35, 40)]


def test_the_way_over_a_fork_reads_each_line_where_it_is_the_owner() -> None:
    plan = restored().plan(Target("latest"), label="backup-1-10")
    assert plan.segments == [segment(1, n) for n in range(10, 20)] + [
        segment(2, n) for n in range(20, 40)
    ]


def test_a_failover_goes_on_with_the_present() -> None:
    found = held({1: range(20), 2: range(20, 40)}, {2: (history((1, 20.3)), 25)})
    # Between the promotion and the arrival of its history file nothing may be lost.
    assert found.plan(at(22)).timeline == 2
    assert [w.timeline for w in found.windows()] == [2]


def test_an_undo_is_a_present_of_its_own() -> None:
    """Back to line 1 by a restore to its end: line 3 follows line 2 in time."""
    found = held(
        {1: range(31), 2: range(20, 40), 3: range(31, 50)},
        {2: (history((1, 20.5)), 32), 3: (history((1, 31)), 41)},
    )
    assert found.current.number == 3
    assert found.plan(at(45)).timeline == 3
    assert found.plan(at(38)).timeline == 2
    assert found.plan(at(27)).timeline == 1
    assert [w.timeline for w in found.windows()] == [1, 2, 3]


def test_lsns_are_of_the_present_unless_a_line_is_named() -> None:
    assert restored().plan(Target("lsn", lsn(25.5))).timeline == 2
    assert restored().plan(Target("lsn", lsn(25.5)), timeline=1).timeline == 1
    with pytest.raises(UsageError, match="not on timeline 1"):
        restored().plan(Target("lsn", lsn(35)), timeline=1)


def test_before_the_first_backup_is_refused_with_what_is_possible() -> None:
    with pytest.raises(UsageError, match="possible is 2026-01-31T12:02:30Z to 2026-01-31T12:31:00"):
        held({1: range(31)}).plan(at(1))


def test_after_the_end_is_refused() -> None:
    with pytest.raises(UsageError, match="after the last WAL"):
        held({1: range(31)}).plan(at(40))
    with pytest.raises(UsageError, match="after the last WAL"):
        held({1: range(31)}).plan(at(40), now=minute(35))
    assert held({1: range(31)}).plan(at(34), now=minute(35)).to_the_end


def test_a_gap_is_named_if_it_is_in_the_way() -> None:
    found = held({1: [n for n in range(31) if n != 12]}, backups=[backup(1, 2), backup(1, 20)])
    with pytest.raises(UsageError, match=f"{segment(1, 12)} is missing.*12:12:00Z"):
        found.plan(at(15))
    assert found.plan(at(11)).segments[-1] == segment(1, 10)
    assert found.plan(at(25)).backup == "backup-1-20"
    with pytest.raises(UsageError, match="is missing"):
        found.plan(at(25), label="backup-1-2")


def test_a_backup_with_errors_is_no_way() -> None:
    found = held({1: range(31)}, backups=[backup(1, 2), backup(1, 10, error=True)])
    assert found.plan(at(15)).backup == "backup-1-2"


def test_a_backup_that_is_named_must_fit() -> None:
    with pytest.raises(UsageError, match="ended after the target"):
        restored().plan(at(15), label="backup-1-25")
    with pytest.raises(UsageError, match="no usable backup of timeline 2"):
        restored().plan(Target("latest"), label="backup-1-25")
    with pytest.raises(UsageError, match="no usable backup"):
        restored().plan(Target("latest"), label="nonsense")


def test_marks() -> None:
    noted = backup(1, 10, annotation={"mark.release-1": f"1 {lsn(12.5)} x", "other": "y"})
    after = backup(1, 20, annotation={"mark.accident": f"1 {lsn(27)} x"})
    found = held(
        {1: range(31), 2: range(20, 40)},
        {2: (history((1, 20.5)), 32)},
        [backup(1, 2), noted, after],
    )
    assert [m.name for m in found.marks] == ["accident", "release-1"]
    assert found.plan(Target("name", "release-1")).timeline == 2
    assert found.plan(Target("name", "release-1")).segments[-1] == segment(1, 12)
    # Made on the line that was left: it is reached there.
    assert found.plan(Target("name", "accident")).timeline == 1
    with pytest.raises(UsageError, match="marks: accident, release-1"):
        found.plan(Target("name", "unknown"))
    # Of a primary whose WAL cannot be archived.
    ahead = backup(1, 20, annotation={"mark.new": f"3 {lsn(50)} x"})
    found = held({1: range(31)}, {}, [backup(1, 2), ahead])
    with pytest.raises(UsageError, match="on timeline 3, of which nothing is in the archive yet"):
        found.plan(Target("name", "new"))


def test_nothing_at_all() -> None:
    empty = archive.read({"backup": []}, {}, {})
    assert empty.windows() == []
    with pytest.raises(UsageError):
        empty.plan(Target("latest"))


@pytest.mark.parametrize(
    ("command", "output", "told"),
    [
        (
            "info",
            "[FormatError] key/value found outside of section at line 1: \x03\ufffdjh\nHINT: \x03",
            "key of",
        ),
        ("info", "ERROR: [031]: cipher header invalid", "key of the repository"),
        ("archive-get", "ERROR: [095]: unable to flush", "damaged, or encrypted with another key"),
        ("info", "ERROR: [049]: unable to connect to 's3:9000'", "S3 does not answer"),
    ],
)
def test_pgbackrests_errors_are_explained(command: str, output: str, told: str) -> None:
    """Also those that quote a file which the wrong key made nonsense of; without the nonsense."""
    text = explain(("--set=x", command), 95, output)
    assert text.startswith(f"pgbackrest {command} failed (95): ")
    assert told in text
    assert "\ufffd" not in text and "\x03" not in text


@pytest.mark.parametrize(("now", "fresh"), [(31 - 60, False), (31 + 60, True)])
def test_a_time_is_refused_where_clocks_are_an_hour_apart(now: float, fresh: bool) -> None:
    """S3's clock is ahead; or behind, which only a segment that came just now can tell."""
    found = held({1: range(31)}, backups=[backup(1, 2)])
    with pytest.raises(UsageError, match="3600 s apart"):
        found.plan(at(15), now=minute(now), fresh=fresh)
    assert found.plan(at(15), timeline=1, now=minute(now + 61), fresh=fresh).timeline == 1
    assert found.plan(Target("latest"), now=minute(now), fresh=fresh).timeline == 1


def test_an_archive_that_began_on_a_later_line_needs_no_history_of_it() -> None:
    """After a new key or prefix: PostgreSQL would look for a history file that is not there."""
    latest = Target("latest")
    begun = held({2: range(20, 40)}, backups=[backup(2, 21)]).plan(latest)
    assert (begun.timeline, begun.no_history) == (2, True)
    assert recovery._recovery_settings(begun, True) == {"recovery_target_timeline": "current"}
    for whole in (restored(), held({1: range(20)})):
        plan = whole.plan(latest)
        assert not plan.no_history
        settings = recovery._recovery_settings(plan, True)
        assert settings == {"recovery_target_timeline": str(plan.timeline)}
