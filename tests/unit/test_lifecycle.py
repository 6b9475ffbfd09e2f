"""Locks, the engine's runner, progress, and the questions asked before anything changes."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pulumi.automation.errors import CommandError
from pulumi.automation.events import EngineEvent
from rich.console import Console

from elsapg.errors import LockedError, SettingsError, UsageError
from elsapg.services import lock
from elsapg.services.engine import EngineCommand
from elsapg.services.lifecycle import Lifecycle, _precious
from elsapg.services.progress import Live, Plain, Record, clean
from tests.unit.conftest import write_command

# -- locks ---------------------------------------------------------------------------------


def test_the_second_is_told_who_and_since_when(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "local"
    with (
        lock.hold(path, "local", "up"),
        pytest.raises(LockedError, match=rf"'elsapg up' \(pid {os.getpid()}, since 20"),
        lock.hold(path, "local", "destroy"),
    ):
        pass
    with lock.hold(path, "local", "destroy"):
        pass


def test_an_unreadable_lock_file_still_locks(tmp_path: Path) -> None:
    path = tmp_path / "local"
    with lock.hold(path, "local", "up"):
        path.write_bytes(b"\xff{")
        with pytest.raises(LockedError, match="another elsapg"), lock.hold(path, "local", "up"):
            pass


def pulumi_lock(state: Path, pid: int, host: str | None = None) -> Path:
    path = state / ".pulumi/locks/organization/elsapg/local/x.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": pid, "hostname": host or socket.gethostname()}))
    return path


def said() -> tuple[list[str], Any]:
    lines: list[str] = []
    return lines, lines.append


def dead_pid() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_the_lock_of_a_dead_engine_goes(tmp_path: Path) -> None:
    path = pulumi_lock(tmp_path, dead_pid())
    assert lock.clear_stale(tmp_path, "elsapg", "local", said()[1])
    assert not path.exists()
    assert not lock.clear_stale(tmp_path, "elsapg", "local", said()[1])


def test_a_pid_given_to_another_program_is_a_dead_engine(tmp_path: Path) -> None:
    path = pulumi_lock(tmp_path, os.getpid())
    lock.clear_stale(tmp_path, "elsapg", "local", said()[1])
    assert not path.exists()


def test_a_lock_cut_short_goes(tmp_path: Path) -> None:
    path = pulumi_lock(tmp_path, 1)
    path.write_text('{"pid": 12')
    lock.clear_stale(tmp_path, "elsapg", "local", said()[1])
    assert not path.exists()


def test_a_write_cut_off_goes_and_what_is_whole_stays(tmp_path: Path) -> None:
    locks = pulumi_lock(tmp_path, 1).parent
    states = tmp_path / ".pulumi/stacks/elsapg"
    states.mkdir(parents=True)
    whole = [states / "local.json", states / "local.json.bak.attrs", states / "locals.json.1.tmp"]
    halves = [locks / "a.json.17.tmp", states / "local.json.18.tmp", states / "local.json.attrs"]
    for path in whole:
        path.write_text("{}")
    for path in halves:
        path.touch()
    lock.clear_stale(tmp_path, "elsapg", "local", said()[1])
    assert [path.exists() for path in halves] == [False] * 3
    assert [path.exists() for path in whole] == [True] * 3
    assert not list(locks.iterdir())
    halves[0].touch()
    assert lock.clear_stale(tmp_path, "elsapg", "local", said()[1])


def test_a_lock_from_another_host_stays(tmp_path: Path) -> None:
    path = pulumi_lock(tmp_path, 1, "elsewhere")
    with pytest.raises(LockedError, match="on host elsewhere"):
        lock.clear_stale(tmp_path, "elsapg", "local", said()[1])
    assert path.exists()


def stand_in(tmp_path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A process whose command line reads like an engine's."""
    name = tmp_path / "pulumi"
    name.symlink_to(Path(sys.executable).resolve())
    code = "import sys, time; print(flush=True); time.sleep(60)"
    child = subprocess.Popen([name, "-c", code, *arguments], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_somebodys_own_pulumi_is_respected(tmp_path: Path) -> None:
    child = stand_in(tmp_path, "up")
    try:
        path = pulumi_lock(tmp_path, child.pid)
        with pytest.raises(LockedError, match=f"another pulumi .pid {child.pid}"):
            lock.clear_stale(tmp_path, "elsapg", "local", said()[1])
        assert path.exists()
    finally:
        child.kill()
        child.wait()


def test_an_orphaned_engine_is_stopped_and_waited_for(tmp_path: Path) -> None:
    child = stand_in(tmp_path, "up", "--exec-kind", "auto.inline")
    threading.Thread(target=child.wait, daemon=True).start()
    path = pulumi_lock(tmp_path, child.pid)
    lines, say = said()
    assert lock.clear_stale(tmp_path, "elsapg", "local", say)
    assert "waiting for its engine" in lines[0]
    assert not path.exists()


# -- the engine's runner -------------------------------------------------------------------


def engine(tmp_path: Path, script: str) -> EngineCommand:
    # A shell cannot trap what was ignored when it started, as in a background job; Pulumi can.
    heard = 'test "$HEARD" || exec env --default-signal=INT HEARD=1 "$0" "$@"'
    return EngineCommand(write_command(tmp_path / "pulumi", f"{heard}\n{script}"), "3.258.0")


def test_output_is_streamed_and_kept_without_control_characters(tmp_path: Path) -> None:
    lines: list[str] = []
    command = engine(tmp_path, 'printf "a\\n\\033[31mred\\033[0m\\n"; echo "$X" "$@"')
    result = command.run(["up"], str(tmp_path), {"X": "y"}, on_output=lines.append)
    assert result.stdout == "a\nred\ny --non-interactive up"
    assert lines[0] == "a"


def test_a_failure_has_its_output(tmp_path: Path) -> None:
    command = engine(tmp_path, "echo 'error: no' >&2; exit 3")
    with pytest.raises(CommandError):
        command.run(["up"], str(tmp_path), {})
    assert command.last is not None
    assert (command.last.code, command.last.stderr) == (3, "error: no")


@pytest.fixture
def handlers() -> Iterator[None]:
    """After an interrupt the runner ignores more of them, for its process is about to end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_handlers_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    engine(tmp_path, "true").run(["up"], str(tmp_path), {})
    assert signal.getsignal(signal.SIGINT) == before


def when_up(number: int) -> Callable[[str], None]:
    """The signal to this process, once the engine says that it has its own trap."""

    def signals(line: str) -> None:
        if line == "up":
            os.kill(os.getpid(), number)

    return signals


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_asks_the_engine_to_stop_once(tmp_path: Path, number: int) -> None:
    script = "trap 'echo stopping; exit 1' INT; echo up; while :; do sleep 0.05; done"
    command = engine(tmp_path, script)
    with pytest.raises(KeyboardInterrupt):
        command.run(["up"], str(tmp_path), {}, on_output=when_up(number))
    assert command.interrupts == 1
    assert command.last is not None
    assert command.last.stdout == "up\nstopping"


@pytest.mark.usefixtures("handlers")
def test_the_second_ctrl_c_kills(tmp_path: Path) -> None:
    command = engine(tmp_path, "trap '' INT; echo up; while :; do sleep 0.05; done")
    counts: list[int] = []

    def again(count: int) -> None:
        counts.append(count)
        if count == 1:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    command.on_interrupt = again
    with pytest.raises(KeyboardInterrupt):
        command.run(["up"], str(tmp_path), {}, on_output=when_up(signal.SIGINT))
    assert counts == [1, 2]


# -- progress ------------------------------------------------------------------------------


def event(kind: str, op: str, name: str, *, custom: bool = True) -> EngineEvent:
    metadata = {
        "op": op,
        "urn": f"urn:pulumi:local::elsapg::t::{name}",
        "type": "pulumi-python:dynamic/docker:Container",
        "provider": "",
        "new": {"type": "t", "urn": "u", "custom": custom, "inputs": {"password": "hunter2"}},
    }
    return EngineEvent.from_json({"sequence": 1, "timestamp": 1, kind: {"metadata": metadata}})


def diagnostic(severity: str, message: str, name: str = "pg-1") -> EngineEvent:
    content = {
        "severity": severity,
        "message": message,
        "urn": f"urn:pulumi:local::elsapg::t::{name}",
        "color": "never",
    }
    return EngineEvent.from_json({"sequence": 1, "timestamp": 1, "diagnosticEvent": content})


def run_through(record: Record, *, terminal: bool) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100)
    shown = Live(record, console, "up local") if terminal else Plain(record, console)
    with shown:
        for op, name in (("create", "pg-1"), ("same", "etcd-1"), ("update", "s3")):
            shown.on_event(event("resourcePreEvent", op, name))
            shown.on_event(event("resOutputsEvent", op, name))
        shown.on_event(event("resourcePreEvent", "create", "haproxy"))
        shown.on_event(event("resOpFailedEvent", "create", "haproxy"))
        shown.on_event(event("resourcePreEvent", "create", "component", custom=False))
        for _ in range(2):
            shown.on_event(diagnostic("error", "<{%reset%}>port 1 is \x1b[31mtaken<{%reset%}>\n"))
    return output.getvalue()


def test_plain_progress_is_a_line_per_change() -> None:
    record = Record()
    lines = run_through(record, terminal=False).splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["created", "Container", "pg-1"],
        ["updated", "Container", "s3"],
        ["creating", "FAILED", "Container"],
    ]
    assert record.summary().startswith("1 created, 1 updated, 1 unchanged, 1 failed in 0.")
    assert record.errors == [("pg-1", "port 1 is taken")]


def test_live_progress_shows_the_same() -> None:
    text = run_through(Record(), terminal=True)
    for word in ("created", "pg-1", "FAILED", "haproxy", "1 unchanged"):
        assert word in text


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_never_shows_values(terminal: bool) -> None:
    assert "hunter2" not in run_through(Record(debug=True), terminal=terminal)


def test_a_plan_speaks_of_what_would_be() -> None:
    record = Record(planning=True)
    output = io.StringIO()
    plain = Plain(record, Console(file=output))
    plain.on_event(event("resourcePreEvent", "create", "pg-1"))
    plain.on_event(event("resOutputsEvent", "create", "pg-1"))
    assert output.getvalue().split() == ["create", "Container", "pg-1"]
    assert record.summary().startswith("1 to be created in")
    assert [step.name for step in record.changes] == ["pg-1"]


def test_a_replacement_counts_once() -> None:
    record = Record()
    for op in ("create-replacement", "replace", "delete-replaced"):
        record.take(event("resourcePreEvent", op, "pg-1"))
        record.take(event("resOutputsEvent", op, "pg-1"))
    assert record.counts == {"replaced": 1}


def test_what_refresh_finds_is_counted() -> None:
    record = Record()
    record.take(event("resourcePreEvent", "refresh", "pg-1"))
    record.take(event("resOutputsEvent", "delete", "pg-1"))
    assert record.counts == {"deleted": 1}


def test_diagnostics_are_sorted_and_cleaned() -> None:
    record = Record()
    record.take(diagnostic("warning", "using pulumi-resource-pulumi-python from $PATH at x"))
    record.take(diagnostic("warning", "slow disk"))
    record.take(diagnostic("info", "hello"))
    record.take(diagnostic("info#err", "chatter"))
    record.take(diagnostic("warning", "resources with pending operations"))
    assert record.warnings == [("pg-1", "slow disk")]
    assert record.notes == ["hello"]
    assert record.pending_operations


def test_rpc_prefixes_go() -> None:
    assert clean("error: Exception calling application: port 1 is taken") == "port 1 is taken"


# -- asking --------------------------------------------------------------------------------


def lifecycle(project: Path, *answers: str) -> Lifecycle:
    given = iter(answers)
    console = Console(file=io.StringIO())
    ask = (lambda _question: next(given)) if answers else None
    return Lifecycle(project, "local", console, program=lambda *_: None, ask=ask)


@pytest.mark.parametrize("operation", ["up", "refresh", "destroy"])
def test_without_a_terminal_yes_must_be_given(project: Path, operation: str) -> None:
    with pytest.raises(UsageError, match="add --yes"):
        getattr(lifecycle(project), operation)()
    assert not (project / ".elsapg").exists()


def test_purge_without_a_terminal_wants_the_name(project: Path) -> None:
    with pytest.raises(UsageError, match="--confirm local"):
        lifecycle(project).destroy(yes=True, purge=True)


@pytest.mark.parametrize(
    ("kind", "inputs", "counts"),
    [
        ("pulumi:index:Stash", {}, True),
        ("pulumi-python:dynamic/elsapg.CertificateAuthority:CertificateAuthority", {}, True),
        ("pulumi-python:dynamic/elsapg.Volume:Volume", {"data": True}, True),
        ("pulumi-python:dynamic/elsapg.Volume:Volume", {"data": False}, False),
        # Of a stack whose secrets somebody else keeps, nothing else would say that there is data.
        ("kubernetes:core/v1:PersistentVolumeClaim", {}, True),
        ("kubernetes:core/v1:Namespace", {}, True),
        ("kubernetes:apps/v1:StatefulSet", {}, False),
        ("kubernetes:core/v1:Secret", {}, False),
    ],
)
def test_what_may_not_go_unasked(kind: str, inputs: dict[str, Any], counts: bool) -> None:
    assert _precious({"type": kind, "inputs": inputs}) is counts


@pytest.mark.parametrize("name", ["", "yes", "Local", "locall"])
def test_purge_wants_exactly_the_name(project: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not the stack's name"):
        lifecycle(project).destroy(purge=True, confirm=name)
    with pytest.raises(UsageError, match="is not the stack's name"):
        lifecycle(project, name).destroy(purge=True)


@pytest.mark.parametrize("operation", ["up", "preview", "refresh"])
def test_bad_settings_stop_everything(project: Path, operation: str) -> None:
    (project / "stacks/Pulumi.local.yaml").write_text("config:\n  elsapg:nope: 1\n")
    with pytest.raises(SettingsError, match="unknown key"):
        getattr(lifecycle(project, "y"), operation)()
    assert not (project / ".elsapg").exists()


def test_destroying_a_stack_that_never_was_is_a_typing_error(project: Path) -> None:
    with pytest.raises(UsageError, match="no stack 'loacl'"):
        Lifecycle(project, "loacl", Console(file=io.StringIO())).destroy(yes=True)


@pytest.mark.usefixtures("fake_pulumi")
def test_destroying_what_is_not_deployed_says_so(project: Path) -> None:
    output = io.StringIO()
    Lifecycle(project, "local", Console(file=output)).destroy(yes=True)
    assert "nothing is deployed" in output.getvalue()
