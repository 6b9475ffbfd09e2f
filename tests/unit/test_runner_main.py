"""The runner's commands: what a failure says, to whoever reads the log of a schedule."""

from __future__ import annotations

from typing import Any

import pytest

from elsapg.errors import DeploymentError
from elsapg.runner import __main__ as runner
from elsapg.runner import configure
from elsapg.runner.patroni import PatroniError


class _Patroni:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def from_any(self, _path: str) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def _fail(monkeypatch: pytest.MonkeyPatch, answer: Any) -> int:
    class Config:
        @classmethod
        def load(cls) -> Config:
            return cls()

        def backup_patroni(self) -> _Patroni:
            return _Patroni(answer)

    def no(*_: Any, **__: Any) -> str:
        raise DeploymentError("no primary answers")

    monkeypatch.setattr(runner, "Config", Config)
    monkeypatch.setattr(runner.backup, "backup", no)
    monkeypatch.setattr("sys.argv", ["runner", "backup", "incr"])
    return runner.main()


def test_what_fails_under_a_restore_says_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fail(monkeypatch, {"pause": True}) == DeploymentError.exit_code
    assert capsys.readouterr().err == f"backup: no primary answers; {configure.PAUSED}\n"


@pytest.mark.parametrize("answer", [{}, PatroniError("nobody answers")])
def test_what_fails_by_itself_says_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    _fail(monkeypatch, answer)
    assert capsys.readouterr().err == "backup: no primary answers\n"
