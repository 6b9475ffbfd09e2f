"""What a restore may be asked for: a time with its zone, an LSN, a mark or latest, no more."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elsapg.errors import UsageError
from elsapg.runner import target as targets

UTC = datetime.UTC
MOMENT = st.datetimes(
    min_value=datetime.datetime(2000, 1, 1), max_value=datetime.datetime(2100, 1, 1)
)
OFFSET = st.integers(min_value=-14 * 60, max_value=14 * 60)


@given(MOMENT, OFFSET)
def test_a_time_with_an_offset_is_that_moment(naive: datetime.datetime, minutes: int) -> None:
    zone = datetime.timezone(datetime.timedelta(minutes=minutes))
    meant = naive.replace(tzinfo=zone)
    for text in (meant.isoformat(), meant.isoformat(sep=" ")):
        found = targets.parse(text)
        assert found.kind == "time"
        assert found.time == meant
        assert found.time.utcoffset() == datetime.timedelta(0)


@given(MOMENT)
def test_a_time_without_a_zone_is_refused(naive: datetime.datetime) -> None:
    with pytest.raises(UsageError, match="the zone is missing"):
        targets.parse(naive.isoformat())


@given(MOMENT)
def test_what_was_read_is_read_again(naive: datetime.datetime) -> None:
    """The journal and the node get the same words."""
    found = targets.parse(naive.isoformat() + "Z")
    assert targets.parse(str(found)) == found


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_lsns_there_and_back(lsn: int) -> None:
    text = targets.show_lsn(lsn)
    assert targets.parse_lsn(text) == lsn
    assert targets.parse(text) == targets.Target("lsn", text)
    assert targets.parse(text.lower()).lsn == lsn


@given(st.from_regex(r"[a-z][a-z0-9_.-]{0,49}", fullmatch=True))
def test_names(name: str) -> None:
    kind = "latest" if name == "latest" else "name"
    assert targets.parse(name).kind == kind
    if kind == "name":
        assert targets.check_name(name) == name


@given(st.text(max_size=40))
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    try:
        found = targets.parse(text)
    except UsageError as error:
        assert "\n" not in str(error).replace(repr(text), "")
    else:
        assert found.kind in ("latest", "time", "lsn", "name")


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00"),
        ("2026-01-31 12:00 UTC", "2026-01-31T12:00:00"),
        ("2026-01-31 12:00:00.25 +0130", "2026-01-31T10:30:00.250000"),
        ("2026-01-31 12:00:00-03", "2026-01-31T15:00:00"),
        ("2026-07-31 12:00:00 Europe/Berlin", "2026-07-31T10:00:00"),
        ("2026-01-31 12:00:00 Europe/Berlin", "2026-01-31T11:00:00"),
    ],
)
def test_times(text: str, utc: str) -> None:
    assert targets.parse(text).time == datetime.datetime.fromisoformat(utc).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2026-01-31", "time of day is missing"),
        ("2026-01-31Z", "time of day is missing"),
        ("2026-02-31T12:00:00Z", "no such time"),
        ("2026-01-31T25:00:00Z", "no such time"),
        ("2026-01-31T12:00:00 Mars/Olympus", "not known here"),
        ("2026-01-31T12:00:00 ../../etc/passwd", "not known here"),
        ("2026-01-31T12:00:00+25:00", "no zone is at"),
        ("2026-10-25 02:30 Europe/Berlin", "the clocks of Europe/Berlin change"),
        ("2026-03-29 02:30 Europe/Berlin", "the clocks of Europe/Berlin change"),
        ("9999-12-31T23:59:59-14:00", "no such time"),
        ("1/2/2026", "a time is written"),
        ("0/12345678901", "a time is written"),
        ("", "give a time"),
        ("Yesterday", "give a time"),
        ("now; DROP TABLE x", "give a time"),
    ],
)
def test_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        targets.parse(text)


@pytest.mark.parametrize("name", ["", "Big", "1st", "a" * 51, "latest", "a b", "a'b", "ä"])
def test_names_that_no_mark_can_have(name: str) -> None:
    with pytest.raises(UsageError, match="a name is"):
        targets.check_name(name)
