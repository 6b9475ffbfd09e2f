"""One operation per stack at a time, also after a run that was killed.

Ours is a `flock`, which the kernel drops when its holder dies. Pulumi's file backend has a lock
file of its own, which stays behind when the engine is killed. Whoever holds the flock knows that
no other elsapg works on this stack, so a Pulumi lock left by a dead engine can go; an engine
that outlived its elsapg is asked to stop, and waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from elsapg.errors import LockedError

ORPHAN_PATIENCE_S = 60.0


@contextlib.contextmanager
def hold(path: Path, stack: str, operation: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. Raises LockedError if another does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(_told(os.pread(descriptor, 4096, 0), stack)) from None
        holder = {
            "pid": os.getpid(),
            "operation": operation,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _told(content: bytes, stack: str) -> str:
    try:
        holder = json.loads(content)
        who = f"'elsapg {holder['operation']}' (pid {holder['pid']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        who = "another elsapg"
    return f"stack {stack!r} is being worked on by {who}; wait for it, or stop it with Ctrl-C"


def clear_stale(state: Path, project: str, stack: str, say: Callable[[str], None]) -> bool:
    """Remove Pulumi's locks of engines that are dead; True if there were any.

    `state` is the folder of the file backend. The caller holds the stack's flock. Raises
    LockedError when a live engine that is not ours (someone's `pulumi up`) holds the stack.
    """
    folder = state / ".pulumi" / "locks" / "organization" / project / stack
    found = False
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            pid, host = int(content["pid"]), str(content["hostname"])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            pid, host = 0, socket.gethostname()  # Cut off by a full disk or a power loss.
        if host != socket.gethostname():
            raise LockedError(
                f"stack {stack!r} is locked by pid {pid} on host {host}; if that run is gone, "
                f"remove {path}"
            )
        command = _command_of(pid)
        if command is not None:
            if "auto.inline" not in command:
                raise LockedError(
                    f"stack {stack!r} is being worked on by another pulumi (pid {pid}); wait for it"
                )
            say(f"an earlier run was killed; waiting for its engine (pid {pid}) to stop")
            _stop_orphan(pid, stack)
        path.unlink(missing_ok=True)
        found = True
    return _clear_cut_off(state, project, stack) or found


def _clear_cut_off(state: Path, project: str, stack: str) -> bool:
    """Remove what an engine killed in the middle of a write left; True if there was any.

    The file backend writes `X.<nanoseconds>.tmp` beside X and renames it, and `X.attrs` in place.
    It takes the first, among locks, for a lock, and fails on either if it is not whole.
    """
    locks = state / ".pulumi" / "locks" / "organization" / project / stack
    states = state / ".pulumi" / "stacks" / project
    halves = [*locks.glob("*.tmp"), *states.glob(f"{stack}.json*.tmp")]
    halves += [
        path
        for path in (*locks.glob("*.attrs"), *states.glob(f"{stack}.json*.attrs"))
        if not _is_json(path)
    ]
    for path in halves:
        path.unlink(missing_ok=True)
    return bool(halves)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _command_of(pid: int) -> list[str] | None:
    """The command line of `pid` if it is a live Pulumi engine, else None."""
    if pid <= 0:
        return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
        return _command_without_proc(pid)
    # A zombie has ended; and a pid that was given to another program is not our engine.
    zombie = stat.rpartition(")")[2].split()[0] == "Z"
    command = words.split("\0")
    return None if zombie or not command or "pulumi" not in Path(command[0]).name else command


def _command_without_proc(pid: int) -> list[str] | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ["pulumi"]


def _stop_orphan(pid: int, stack: str) -> None:
    """Ask the engine to stop gracefully; kill it when its patience is over."""
    for number, patience in ((signal.SIGINT, ORPHAN_PATIENCE_S), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if _command_of(pid) is None:
                return
            time.sleep(0.1)
    raise LockedError(f"the engine of a killed run (pid {pid}) of stack {stack!r} does not end")
