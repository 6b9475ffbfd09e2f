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

SHA = "0" * 40
BACKUP = {
    "type": "full",
    "archive": {"start": "000000010000000000000003", "stop": "000000010000000000000003"},
    "lsn": {"start": "0/3000028", "stop": "0/3000100"},
    "timestamp": {"start": 1, "stop": 2},
}


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
                "backup": [
                    {**BACKUP, "label": f"in-{n}", "database": {"repo-key": n}} for n in readable
                ],
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
