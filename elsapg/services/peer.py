"""A process inside a unit that is driven by its standard input and answers line by line.

When this process dies, the other one's input ends: that is how it knows.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from elsapg.errors import UnhealthyError
from elsapg.targets.hosts import NEVER_STARTED, START_AGAIN_AFTER_S, STARTS


class Peer:
    """One such process, started with pipes to its input and output."""

    def __init__(self, name: str, start: Callable[[], subprocess.Popen[str]]) -> None:
        self.name = name
        self._start = start
        self._begin()

    def _begin(self) -> None:
        self._process = self._start()
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()

    def begun(self, word: str, timeout: float) -> str:
        """As `expect`, of its first line; where it was never started it is begun again."""
        for left in reversed(range(STARTS)):
            try:
                return self.expect(word, timeout)
            except UnhealthyError as error:
                if not left or not NEVER_STARTED.search(str(error)):
                    raise
            self.close()
            time.sleep(START_AGAIN_AFTER_S)
            self._begin()
        raise AssertionError

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()

    def expect(self, word: str, timeout: float) -> str:
        """The rest of the next line, which must begin with `word`. Raises UnhealthyError."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise UnhealthyError(f"{self.name} did not answer within {timeout:.0f} s") from None
        first, _, rest = (line or "error it ended").partition(" ")
        if first != word:
            raise UnhealthyError(f"{self.name}: {rest if first == 'error' else line}")
        return rest

    def finish(self, say: Callable[[str], None], silence: float = 60) -> dict[str, Any]:
        """Listen until it is done and return what it found; it says something every few seconds.

        Raises UnhealthyError with its error, or when it is silent for too long.
        """
        while True:
            try:
                line = self._lines.get(timeout=silence)
            except queue.Empty:
                raise UnhealthyError(
                    f"{self.name} has said nothing for {silence:.0f} s; run the same again"
                ) from None
            word, _, rest = (line or "error it ended without an answer").partition(" ")
            if word == "done":
                return dict(json.loads(rest))
            if word == "say":
                say(rest)
            elif word != "alive":
                raise UnhealthyError(f"{self.name}: {rest if word == 'error' else line}")

    def close(self) -> None:
        """End its input and wait for it: a gate resumes its pool before it ends."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.strip())
    lines.put(None)
