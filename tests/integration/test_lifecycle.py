"""The lifecycle against the real engine, with a program of files instead of containers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elsapg.services import machine, workspace
from elsapg.services.places import Places

REPOSITORY = Path(__file__).resolve().parents[2]
THINGS = {f"thing-{number}" for number in range(1, 7)}


class Trial:
    """A project of its own, driven by processes, as a user would."""

    def __init__(self, folder: Path, pulumi: Path) -> None:
        # A space in the path, because people have them.
        self.root = folder / "a project"
        self.box = folder / "box"
        self.box.mkdir()
        (self.root / "stacks").mkdir(parents=True)
        (self.root / "Pulumi.yaml").write_text("name: elsapg\nruntime: python\n")
        self.stack_file = self.root / "stacks" / "Pulumi.local.yaml"
        self.stack_file.write_text("config:\n  elsapg:target: docker\n")
        self.places = Places(self.root)
        machine.write_launcher(self.places)
        (self.places.bin / "pulumi").symlink_to(pulumi)

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PULUMI_", "ELSAPG_"))}
        env |= {"TRIAL_BOX": str(self.box), "PYTHONPATH": str(REPOSITORY), **variables}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.integration.trial_program", self.root, *words],
            cwd=REPOSITORY,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, code: int = 0, **variables: str) -> str:
        child = self.start(*words, **variables)
        output, _ = child.communicate(timeout=120)
        assert child.returncode == code, output
        assert "Traceback" not in output
        return output

    @property
    def things(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.box.iterdir()}

    def state(self) -> dict[str, Any]:
        path = self.places.state / ".pulumi/stacks/elsapg/local.json"
        latest: dict[str, Any] = json.loads(path.read_text())["checkpoint"]["latest"]
        return latest

    def processes(self) -> list[int]:
        """Engines and providers that work in this project."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                content = path.read_bytes()
                command = (path.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if f"TRIAL_BOX={self.box}".encode() in content and command:
                found.append(int(path.parent.name))
        return found


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    pulumi, _ = workspace.find_pulumi(Places(REPOSITORY))
    made = Trial(tmp_path, pulumi)
    yield made
    for pid in made.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_secret_of_somebody_else_is_kept_until_another_is_given(trial: Trial) -> None:
    """Keys of S3 end, and are replaced."""
    kept = "first"
    trial.run("up", TRIAL_GIVEN="1", ELSAPG_S3_ACCESS_KEY=kept)
    for value in ("second", ""):
        # It is protected, and so is not made anew.
        trial.run("up", TRIAL_GIVEN="1", ELSAPG_S3_ACCESS_KEY=value)
        assert trial.run("given").strip() == (value or kept)
        kept = value or kept


def eventually(what: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stack_from_up_to_purge(trial: Trial) -> None:
    before = trial.stack_file.read_text()
    assert "8 created" in trial.run("up")
    assert set(trial.things) == {"volume", *THINGS}
    assert "8 unchanged" in trial.run("up")
    assert "8 unchanged" in trial.run("up-expecting-nothing")
    password = trial.run("password").strip()
    assert password.startswith("hunter2-")

    told = trial.run("up-expecting-nothing", code=9, TRIAL_VALUE="2")
    assert "there are 6" in told
    assert "update Thing thing-1" in told
    assert trial.things["thing-1"] == "1"
    assert "6 to be updated" in trial.run("preview", TRIAL_VALUE="2")
    assert "6 updated, 2 unchanged" in trial.run("up", TRIAL_VALUE="2")
    assert trial.things["thing-1"] == "2"

    (trial.box / "thing-3").unlink()
    assert "1 deleted" in trial.run("refresh")
    assert "1 created" in trial.run("up", TRIAL_VALUE="2")
    assert trial.run("password").strip() == password

    told = trial.run("destroy")
    assert "kept, for they hold data or secrets: password, volume" in told
    assert "--purge" in told
    assert set(trial.things) == {"volume"}
    assert "nothing runs" in trial.run("destroy")
    assert "6 created, 2 unchanged" in trial.run("up")
    assert trial.run("password").strip() == password

    assert "is not the stack's name" in trial.run("purge", "locall", code=2)
    assert set(trial.things) == {"volume", *THINGS}
    assert "are gone" in trial.run("purge", "local")
    assert not trial.things
    assert "nothing is deployed" in trial.run("destroy")
    assert "not deployed" in trial.run("password", code=8)
    assert trial.places.passphrase.exists()
    assert trial.stack_file.read_text() == before

    leaks = [
        path
        for path in trial.places.private.rglob("*")
        if path.is_file() and not path.is_symlink() and password.encode() in path.read_bytes()
    ]
    assert not leaks


def test_a_wrong_passphrase_is_one_sentence(trial: Trial) -> None:
    trial.run("up")
    for command in ("up", "preview", "password", "refresh", "destroy"):
        told = trial.run(command, code=6, PULUMI_CONFIG_PASSPHRASE="wrong")
        assert "the passphrase does not open the state of stack 'local'" in told
        assert len(told.splitlines()) == 1
    trial.places.passphrase.rename(trial.root / "aside")
    assert "passphrase of stack 'local' is lost" in trial.run("up", code=2)
    (trial.root / "aside").rename(trial.places.passphrase)
    assert "8 unchanged" in trial.run("up")


def test_a_lost_workspace_is_made_again(trial: Trial) -> None:
    trial.run("up")
    for path in trial.places.workspace("local").iterdir():
        path.unlink()
    assert "8 unchanged" in trial.run("up-expecting-nothing")


def test_the_second_of_two_ups_is_told(trial: Trial) -> None:
    first = trial.start("up", TRIAL_DELAY="1")
    eventually(lambda: bool(trial.places.lock("local").exists()))
    eventually(lambda: trial.places.lock("local").read_text() != "")
    told = trial.run("up", code=5)
    assert f"is being worked on by 'elsapg up' (pid {first.pid}, since " in told
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output


def test_a_failure_names_the_thing_and_the_next_up_continues(trial: Trial) -> None:
    told = trial.run("up", code=6, TRIAL_FAIL="thing-3")
    assert "thing-3: port of thing-3 is taken: free it" in told
    assert "run the same command again to continue" in told
    assert "thing-3" not in trial.things
    trial.run("up")
    assert set(trial.things) == {"volume", *THINGS}
    assert "8 unchanged" in trial.run("up-expecting-nothing")


# Seconds after the start: before the engine, in `stack init`, in the engine's start, and while
# the first, second and third things are made (half a second each).
MOMENTS = [0.4, 1.0, 1.6, 2.2, 2.8]


@pytest.mark.parametrize("engine_too", [False, True], ids=["elsapg", "elsapg-and-engine"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_up_is_finished_by_the_next(trial: Trial, moment: float, engine_too: bool) -> None:
    child = trial.start("up", TRIAL_DELAY="0.5")
    time.sleep(moment)
    victims = trial.processes() if engine_too else []
    os.kill(child.pid, signal.SIGKILL)
    for pid in victims:
        # Not the providers: they must see by themselves that their engine is gone.
        if b"provider_host" not in _command(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    child.communicate()
    trial.run("up")
    assert set(trial.things) == {"volume", *THINGS}
    assert "8 unchanged" in trial.run("up-expecting-nothing")
    # The engine would warn about these for ever.
    assert not trial.state().get("pending_operations")
    eventually(lambda: not trial.processes())


@pytest.mark.parametrize(
    "half", ["locks/organization/elsapg/local/1.json.2.tmp", "stacks/elsapg/local.json.attrs"]
)
def test_a_write_that_was_cut_off_is_no_obstacle(trial: Trial, half: str) -> None:
    """What an engine killed at the wrong microsecond leaves: the moments above seldom hit it."""
    trial.run("up")
    path = trial.places.state / ".pulumi" / half
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert "8 unchanged" in trial.run("up")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b"provider_host"


def test_a_reader_that_has_gone_stops_nothing(trial: Trial) -> None:
    """As in `elsapg up | head -1`, or when the log's disk is away: the engine ends its work."""
    child = trial.start("up", TRIAL_DELAY="0.5")
    assert child.stdout
    eventually((trial.box / "volume").exists)
    child.stdout.close()
    child.wait(timeout=180)
    assert set(trial.things) == {"volume", *THINGS}
    assert "8 unchanged" in trial.run("up-expecting-nothing")
    eventually(lambda: not trial.processes())


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_and_the_next_up_continues(trial: Trial, times: int) -> None:
    child = trial.start("up", TRIAL_DELAY="1")
    eventually((trial.box / "volume").exists)
    for _ in range(times):
        child.send_signal(signal.SIGINT)
        time.sleep(0.3)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 130, output
    assert "the same command run again continues" in output
    assert "Traceback" not in output
    trial.run("up")
    assert "8 unchanged" in trial.run("up-expecting-nothing")
    eventually(lambda: not trial.processes())


def test_a_killed_destroy_is_finished_by_the_next(trial: Trial) -> None:
    trial.run("up")
    child = trial.start("destroy")
    eventually(lambda: not {path.name for path in trial.box.iterdir()} >= THINGS)
    for pid in [child.pid, *trial.processes()]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    child.communicate()
    trial.run("destroy")
    assert set(trial.things) == {"volume"}
    trial.run("purge", "local")
    assert not trial.things
