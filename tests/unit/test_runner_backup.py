"""The backup module: when the next backup is due, and what pgBackRest's failure sounds like."""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as within
from hypothesis import strategies as st

from elsapg.runner import backup
from elsapg.runner.backup import missed_run, next_run
from elsapg.runner.config import Config
from elsapg.runner.pgbackrest import Repository, RepositoryError
from elsapg.services import backups
from tests.unit.fakes import backup_told

SCHEDULES = {"full": "0 1 * * 0", "incr": "0 1 * * 1-6"}
SUNDAY = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
CONFIG = Config(
    nodes=["pg-1"],
    patroni_port=8008,
    primary={"host": "primary", "port": 5432},
    superuser="postgres",
    sslrootcert="/ca",
    sslcert="/crt",
    sslkey="/key",
    sql_dir="/sql",
    passwords_file="/roles",
    dynamic_file="/dynamic",
    stanza="elsa",
    schedules=SCHEDULES,
)


def at(day: int, hour: int, minute: int = 0) -> datetime.datetime:
    return SUNDAY + datetime.timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("now", "kind", "due"),
    [
        (at(0, 0, 59), "full", at(0, 1)),
        (at(0, 1), "incr", at(1, 1)),
        (at(5, 2), "incr", at(6, 1)),
        (at(6, 2), "full", at(7, 1)),
    ],
)
def test_the_next_backup(now: datetime.datetime, kind: str, due: datetime.datetime) -> None:
    assert next_run(SCHEDULES, now) == (kind, due)


@pytest.mark.parametrize("order", [("full", "incr"), ("incr", "full")])
def test_a_full_one_wins_where_both_are_due(order: tuple[str, str]) -> None:
    schedules = dict.fromkeys(order, "0 1 * * *")
    assert next_run(schedules, at(0, 0)) == ("full", at(0, 1))


@within(deadline=None)
@given(st.datetimes(timezones=st.just(datetime.UTC), min_value=datetime.datetime(2024, 1, 1)))
def test_it_is_always_in_the_future_and_within_a_day(now: datetime.datetime) -> None:
    _, due = next_run(SCHEDULES, now)
    assert datetime.timedelta(0) < due - now <= datetime.timedelta(days=1)


def info(*labels: str) -> str:
    """pgBackRest's answer."""
    return json.dumps([{"backup": [backup_told(label, n) for n, label in enumerate(labels)]}])


class Tool:
    """pgBackRest: remembers how it was called, answers as it was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        self.code = 0
        self.out = '[{"backup": []}]'
        self.err = ""
        monkeypatch.setattr(subprocess, "run", self._run)

    def _run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        return subprocess.CompletedProcess(command, self.code, self.out, self.err)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Tool:
    return Tool(monkeypatch)


def test_a_repository_of_another_cipher_is_told_and_not_quoted(tool: Tool) -> None:
    tool.code = 29
    tool.err = "ERROR: [029]: unable to load info file '/wal/archive/elsa/archive.info'\n\x07\ufffd"
    with pytest.raises(RepositoryError) as caught:
        Repository().run("stanza-create")
    assert "repository-cipher" in str(caught.value) and "archive.prefix" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_failure_is_its_error_lines(tool: Tool) -> None:
    tool.code = 82
    tool.err = "WARN: later\nERROR: [082]: WAL segment was not archived\nHINT: look\n"
    with pytest.raises(RepositoryError) as caught:
        Repository().run("check")
    assert str(caught.value) == (
        "pgbackrest check failed (82): ERROR: [082]: WAL segment was not archived"
    )


def test_a_failure_without_error_lines_says_what_there_is(tool: Tool) -> None:
    tool.code, tool.err = 1, "killed"
    with pytest.raises(RepositoryError, match=r"pgbackrest check failed \(1\): killed"):
        Repository().run("check")


def test_the_first_backup_is_taken_once(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    tool.out = info("20260101-010000F")
    backup.first(CONFIG)
    verbs = [call[-1] for call in tool.calls]
    assert verbs == ["stanza-create", "check", "info"]
    assert "the last one 20260101-010000F" in capsys.readouterr().out


def test_the_first_backup_is_full(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(backup, "backup", lambda _, kind: taken.append(kind) or "L")  # type: ignore[func-returns-value]
    backup.first(CONFIG)
    assert taken == ["full"]
    assert [call[1] for call in tool.calls] == ["--stanza=elsa"] * 3


def test_a_backup_is_told_by_its_label(tool: Tool) -> None:
    tool.out = info("A", "B")
    assert backup.backup(CONFIG, "incr") == "B"
    own = ["pgbackrest", "--stanza=elsa", "--repo=1"]
    # S3 is looked at first, which is quick where it is away.
    assert tool.calls[0][:3] == own and tool.calls[0][-1] == "info"
    assert tool.calls[1] == [*own, "--type=incr", "backup"]


def test_one_that_is_to_keep_a_way_back_expires_nothing(tool: Tool) -> None:
    """By the automatic expiry that follows a backup the history that is wanted back could go."""
    tool.out = info("A")
    backup.backup(CONFIG, "incr", expire=False)
    assert tool.calls[1][-3:] == ["--type=incr", "--no-expire-auto", "backup"]


@pytest.mark.parametrize(
    ("kind", "told", "taken"),
    [
        ("incr", "new backup label 'AF_BI' is not later than latest backup label 'BF'", True),
        ("incr", "unable to acquire lock", False),
        ("full", "new backup label 'AF' is not later than latest backup label 'BF'", False),
    ],
)
def test_a_full_one_that_broke_off_is_taken_again(
    monkeypatch: pytest.MonkeyPatch, kind: backup.Kind, told: str, taken: bool
) -> None:
    calls: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if command[-1] == "info":
            return subprocess.CompletedProcess(command, 0, info("C"), "")
        calls.append(command[-2])
        again = len(calls) > 1
        return subprocess.CompletedProcess(command, 0 if again else 106, "", f"ERROR: {told}")

    monkeypatch.setattr(subprocess, "run", run)
    if taken:
        assert backup.backup(CONFIG, kind) == "C"
        assert calls == ["--type=incr", "--type=full"]
    else:
        with pytest.raises(RepositoryError, match=told):
            backup.backup(CONFIG, kind)
        assert len(calls) == 1


@pytest.mark.parametrize("late_again", [False, True])
def test_a_standby_that_does_not_come_along_is_not_copied_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], late_again: bool
) -> None:
    late = "ERROR: [082]: timeout before standby checkpoint lsn reached 0/5000028"
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if command[-1] == "info":
            return subprocess.CompletedProcess(command, 0, info("C"), "")
        calls.append(command[3:])
        fails = len(calls) == 1 or late_again
        return subprocess.CompletedProcess(command, 82 if fails else 0, "", late)

    monkeypatch.setattr(subprocess, "run", run)
    if late_again:
        with pytest.raises(RepositoryError, match=r"0/5000028$"):
            backup.backup(CONFIG, "incr")
    else:
        assert backup.backup(CONFIG, "incr") == "C"
    assert calls == [
        ["--type=incr", "backup"],
        ["--type=incr", "--no-backup-standby", "backup"],
    ]
    assert "copying from the primary" in capsys.readouterr().out


def test_a_second_repository_gets_its_own_even_if_the_first_fails(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = dataclasses.replace(CONFIG, repositories=2)
    tool.out = json.dumps([{"backup": [backup_told("A"), backup_told("B", repository=2)]}])
    assert backup.backup(both, "full") == "A"
    taken = [call for call in tool.calls if call[-1] == "backup"]
    assert [call[2] for call in taken] == ["--repo=1", "--repo=2"]
    tool.calls.clear()
    tool.code, tool.err = 1, "ERROR: no S3"
    with pytest.raises(RepositoryError, match=r"repository 1: .*no S3.*; repository 2: .*no S3"):
        backup.backup(both, "full")
    assert len(tool.calls) == 2


def test_no_stanza_is_no_backup(tool: Tool) -> None:
    tool.out = "[]"
    assert backup.info(CONFIG) == {}


def test_the_list_that_people_see() -> None:
    raw = {
        "label": "20260301-010000F",
        "type": "full",
        "timestamp": {"start": 1772326800, "stop": 1772326860},
        "info": {"size": 1000, "repository": {"delta": 100}},
        "error": True,
    }
    [found] = backups.parse({"backup": [raw]})
    assert found == backups.Backup(
        label="20260301-010000F",
        kind="full",
        started="2026-03-01T01:00:00+00:00",
        finished="2026-03-01T01:01:00+00:00",
        database_bytes=1000,
        repository_bytes=100,
        failed=True,
    )
    assert backups.parse({}) == []


def test_config_words_are_quoted_for_libpq() -> None:
    words = CONFIG.conninfo("elsa_runtime", host="pg 1")
    assert "host='pg 1'" in words
    assert "sslmode=verify-full" in words
    assert "password" not in words


def test_what_was_missed_is_made_up() -> None:
    schedules = SCHEDULES
    # A Monday noon.
    now = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)

    def made(kind: str, day: int, hour: int = 2) -> dict[str, Any]:
        start = datetime.datetime(2026, 11, day, hour, tzinfo=datetime.UTC).timestamp()
        return {"type": kind, "timestamp": {"start": start}}

    assert missed_run(schedules, [], now) is None
    assert missed_run(schedules, [made("full", 22), made("incr", 23)], now) is None
    assert missed_run(schedules, [made("full", 22)], now) == "incr"
    assert missed_run(schedules, [made("full", 15), made("incr", 23)], now) == "full"
