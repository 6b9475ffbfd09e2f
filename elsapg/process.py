"""The one place that runs other programs and waits for them to end.

Output is captured, never inherited: what a program prints may not reach the terminal unread.
The Pulumi engine is the exception; it needs its output streamed and its Ctrl-C handled
(`elsapg.services.engine`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elsapg.errors import ElsapgError, MissingError

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def printable(text: str) -> str:
    """`text` without escape sequences and control characters (line breaks and tabs stay)."""
    return _CONTROL.sub("", text)


@dataclass(frozen=True)
class Completed:
    """A program that has ended."""

    command: tuple[str, ...]
    code: int
    stdout: str
    stderr: str


class CommandFailedError(ElsapgError):
    """A program ended with an exit code other than 0, or not in time."""

    exit_code = 4

    def __init__(self, name: str, reason: str, output: str) -> None:
        self.name = name
        self.output = printable(output)
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        tail = "; ".join(lines[-3:])
        super().__init__(f"{name} {reason}" + (f": {tail}" if tail else ""))


def find(name: str, path: str | None = None) -> Path | None:
    """Where the command `name` is on PATH (or on `path`)."""
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    check: bool = True,
    stdin: str | None = None,
) -> Completed:
    """Run `command` to its end; `env` is added to this process's own.

    Raises MissingError when there is no such program, CommandFailedError (naming the program
    and its last lines) when it fails and `check` is set, or takes longer than `timeout` seconds.
    """
    words = tuple(str(word) for word in command)
    name = Path(words[0]).name + (f" {words[1]}" if len(words) > 1 and words[1].isalpha() else "")
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **env} if env else None,
            timeout=timeout,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise MissingError(f"cannot run {words[0]}: {error.strerror}; run 'elsapg setup'") from None
    except subprocess.TimeoutExpired as error:
        output = error.stderr or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        raise CommandFailedError(name, f"did not end within {timeout:g} s", text) from None
    if check and done.returncode != 0:
        raise CommandFailedError(
            name, f"failed (exit {done.returncode})", done.stderr.strip() or done.stdout
        )
    return Completed(words, done.returncode, done.stdout, done.stderr)
