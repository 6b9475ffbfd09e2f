"""pgBackRest's repositories: one or several, readable or not."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from elsapg.runner.pgbackrest import (
    SETTLES_S,
    Repository,
    RepositoryError,
    explain,
    settle,
    unreadable,
)
from tests.unit.fakes import backup_told

SHA = "0" * 40


class Tool:
    """pgBackRest with two repositories; `away` are those that cannot be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away: set[int] = set()
        self.segments = {1: {3, 4, 6}, 2: {4, 5, 6}}
        self.calls: list[list[str]] = []
        monkeypatch.setattr(subprocess, "run", self._run)

    def _run(self, words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(words)
        chosen = [int(w.removeprefix("--repo=")) for w in words if w.startswith("--repo=")]
        found: Any = self._info(chosen) if words[-1] == "info" else self._list(chosen[0])
        return subprocess.CompletedProcess(words, 0, json.dumps(found), "")

    def _info(self, chosen: list[int]) -> Any:
        numbers = chosen or [1, 2]
        readable = [n for n in numbers if n not in self.away]
        status = {n: {"code": 99 if n in self.away else 0, "message": "[049] x"} for n in numbers}
        return [
            {
                "repo": [{"key": n, "status": status[n]} for n in numbers],
                "db": [{"id": 1, "version": "17", "repo-key": n} for n in readable],
                "backup": [backup_told(f"in-{n}", repository=n) for n in readable],
            }
        ]

    def _list(self, number: int) -> Any:
        return {
            f"0000000100000000/0000000100000000000000{n:02X}-{SHA}.zst": {"type": "file", "time": n}
            for n in self.segments[number]
        }


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Tool:
    return Tool(monkeypatch)


def segments(repository: Repository) -> set[int]:
    return {number for number, _ in repository.archive().lines[1].segments}


def test_a_restore_sees_what_any_of_them_holds(tool: Tool) -> None:
    assert segments(Repository()) == {3, 4, 5, 6}
    assert {b.label for b in Repository().archive().backups} == {"in-1", "in-2"}


def test_a_check_sees_one(tool: Tool) -> None:
    assert segments(Repository(number=2)) == {4, 5, 6}
    assert [b.label for b in Repository(number=2).archive().backups] == ["in-2"]


def test_one_that_is_away_does_not_matter_to_a_restore(tool: Tool) -> None:
    tool.away = {1}
    assert segments(Repository()) == {4, 5, 6}
    with pytest.raises(RepositoryError, match="S3 does not answer"):
        Repository(number=1).archive()
    # It is told, all the same.
    assert "S3 does not answer" in unreadable(Repository().info())[1]
    tool.away = {1, 2}
    with pytest.raises(RepositoryError, match="S3 does not answer"):
        Repository().archive()


def test_backups_come_in_the_order_in_which_they_were_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_label = [
        backup_told("20260101-010000F", 3),
        # Of a stack that went back.
        backup_told("20260101-010000F_20260104-010000I", 4, timeline=2),
        backup_told("20260102-010000F", 9),
        backup_told("20260102-010000F_20260103-010000I", 12),
    ]
    done = subprocess.CompletedProcess([], 0, json.dumps([{"repo": [], "backup": by_label}]), "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    found = [backup["label"] for backup in Repository().info()["backup"]]
    assert found == [by_label[n]["label"] for n in (0, 2, 3, 1)]


def test_what_s3_says_is_told_without_its_headers() -> None:
    output = """ERROR: [099]: HTTP request failed with 404 (Not Found): *** Path/Query ***: GET /b/
            authorization: <redacted>
            *** Response Content ***:
            <?xml version="1.0" encoding="UTF-8"?>
            <Error><Code>NoSuchBucket</Code><Message>The bucket does not exist.</Message></Error>"""
    assert explain(["--stanza=elsa", "info"], 99, output) == (
        "pgbackrest info failed (99): ERROR: [099]: HTTP request failed with 404 (Not Found); S3 "
        "answers NoSuchBucket: The bucket does not exist. See its keys, and elsapg:archive "
        "(endpoint, bucket, region)"
    )


def test_a_gap_of_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    answers = iter([["gap"], ["gap"], []])
    assert settle(lambda: next(answers), bool) == []
    assert settle(lambda: ["gap"], bool) == ["gap"]
    assert clock[0] >= SETTLES_S
