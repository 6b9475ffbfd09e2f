"""Runs the `pulumi` binary for the Automation API, so that Ctrl-C is ours to handle.

The SDK's own runner leaves the engine in the terminal's process group: one Ctrl-C reaches both
processes at once, and the SDK then abandons an engine that is still saving state. Here the
first Ctrl-C (or SIGTERM) asks the engine to stop after the operations it has begun; the second
kills it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO

from pulumi.automation import CommandResult, OnOutput, PulumiCommand
from pulumi.automation.errors import create_command_error
from semver import VersionInfo

from elsapg import process


class EngineCommand(PulumiCommand):
    """A PulumiCommand that remembers its last result and whether it was interrupted."""

    def __init__(self, binary: Path, version: str) -> None:
        # Not the base's constructor: it runs `pulumi version` again, which we know already.
        self.command = str(binary)
        self.version = VersionInfo.parse(version.removeprefix("v"))
        self.interrupts = 0
        self.on_interrupt: Callable[[int], None] = lambda _count: None
        self.last: CommandResult | None = None

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: OnOutput | None = None,
        on_error: OnOutput | None = None,
    ) -> CommandResult:
        """Run one command to its end. Raises CommandError, or KeyboardInterrupt if stopped."""
        if self.interrupts:
            raise KeyboardInterrupt
        process_ = subprocess.Popen(
            [self.command, "--non-interactive", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env={**os.environ, **additional_env, "PULUMI_AUTOMATION_API": "true"},
            encoding="utf-8",
            errors="replace",
            process_group=0,
        )
        assert process_.stdout is not None
        assert process_.stderr is not None
        with self._interrupts_to(process_):
            out = _Drain(process_.stdout, on_output)
            err = _Drain(process_.stderr, on_error)
            code = process_.wait()
            # A provider that outlives a killed engine may hold the pipes open for a moment.
            out.join(5)
            err.join(5)
        self.last = CommandResult(stdout=out.text, stderr=err.text, code=code)
        if self.interrupts:
            raise KeyboardInterrupt
        if code != 0:
            raise create_command_error(self.last)
        return self.last

    @contextlib.contextmanager
    def _interrupts_to(self, child: subprocess.Popen[str]) -> Iterator[None]:
        def handle(_number: int, _frame: FrameType | None) -> None:
            self.interrupts += 1
            with contextlib.suppress(ProcessLookupError):
                if self.interrupts == 1:
                    child.send_signal(signal.SIGINT)
                else:
                    os.killpg(child.pid, signal.SIGKILL)
            self.on_interrupt(self.interrupts)

        if threading.current_thread() is not threading.main_thread():
            yield  # Only the main thread may set handlers; a caller elsewhere has its own.
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            # Once interrupted we are on the way out: an impatient Ctrl-C more must not kill the
            # interpreter in its orderly end (which gives back every handler but this one).
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self.interrupts else handler)


class _Drain(threading.Thread):
    """Reads a stream to its end, line by line."""

    def __init__(self, stream: IO[str], callback: OnOutput | None) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._callback = callback
        self._lines: list[str] = []
        self.start()

    def run(self) -> None:
        for line in self._stream:
            self._lines.append(line.rstrip())
            if self._callback:
                self._callback(line.rstrip())

    @property
    def text(self) -> str:
        return process.printable("\n".join(self._lines))
