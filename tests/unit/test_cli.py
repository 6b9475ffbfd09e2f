"""The command line: exit codes, one or two lines per error, no traceback unless asked for."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from elsapg import cli
from elsapg.cli import main, run_guarded
from elsapg.errors import DeploymentError, ElsapgError

COMMANDS = ["up", "preview", "refresh", "destroy", "doctor", "setup"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    output = capsys.readouterr().out
    assert "Example" in output
    assert f"elsapg {command}" in output


def test_the_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0
    assert "Exit codes" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("elsapg ")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["upp"], "Did you mean 'up'"),
        (["up", "--bogus"], "--bogus"),
        (["up", "extra"], "extra"),
        (["up", "--stack"], "--stack"),
        (["up", "--stack", "Odd Name", "--yes"], "cannot name containers"),
        (["up", "--stack", "../etc", "--yes"], "cannot name containers"),
        (["up", "--stack", "missing", "--yes"], "no stack 'missing'"),
        (["up"], "add --yes"),
        (["destroy", "--purge"], "--confirm local"),
    ],
)
@pytest.mark.usefixtures("project")
def test_usage_errors_are_told_without_a_traceback(
    line: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(line) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_the_stack_may_come_from_the_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ELSAPG_STACK", "elsewhere")
    assert main(["preview"]) == 2
    assert "no stack 'elsewhere'" in capsys.readouterr().err


def test_bad_settings_are_exit_code_3(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "stacks/Pulumi.local.yaml").write_text("config: {elsapg:a: 1, elsapg:b: 2}\n")
    assert main(["up", "--yes"]) == 3
    assert "2 problems" in capsys.readouterr().err


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("kind", ElsapgError.__subclasses__())
def test_every_error_has_a_code_of_its_own(kind: type[ElsapgError]) -> None:
    assert kind.exit_code not in (0, 1, 70)


def test_our_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: fail(DeploymentError("port taken")), debug=False) == 6
    assert capsys.readouterr().err == "elsapg: port taken\n"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: fail(DeploymentError("port taken")), debug=True) == 6
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_is_two_lines_and_code_70(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: fail(KeyError("x\ny")), debug=False) == 70
    error = capsys.readouterr().err
    assert "this is a defect of elsapg; run with --debug" in error
    assert len(error.splitlines()) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_ctrl_c_is_130(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: fail(error), debug=False) == 130
    assert capsys.readouterr().err == "elsapg: stopped\n"


def test_ctrl_c_inside_a_command_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("elsapg.services.machine.examine", lambda *_: fail(KeyboardInterrupt()))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "elsapg: stopped\n"


def test_debug_is_understood_anywhere_but_after_dashes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "--stack", "nope", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    del os.environ["ELSAPG_DEBUG"]
    assert main(["preview", "--stack", "nope", "--", "--debug"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_every_group_registers() -> None:
    assert {c.callback.__name__ for c in cli.build().registered_commands if c.callback} >= set(
        COMMANDS
    )


def test_a_closed_pipe_is_no_traceback(project: Path) -> None:
    script = f"{sys.executable} -m elsapg.cli --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_doctor_prints_json(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from elsapg.services.machine import Check

    monkeypatch.setattr(
        "elsapg.services.machine.examine", lambda *_: [Check("go", False, "no", "install Go")]
    )
    assert main(["doctor", "--json"]) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out) == [
        {"name": "go", "ok": False, "found": "no", "way_out": "install Go"}
    ]
    assert "this machine lacks: go" in captured.err
