"""Where a stack's units run, as all that operates them sees it: the same for every target."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from elsapg.definition import topology as t

# runc's word that a command in a container was never started (but for one that is not there). It
# happens on a busy machine ("waiting for init preliminary setup: … connection reset by peer", runc
# 2812), and the next try succeeds: nothing has run, so any command may be tried again.
NEVER_STARTED = re.compile(r"unable to start container process: (?!exec: )")
STARTS, START_AGAIN_AFTER_S = 3, 0.5
_T = TypeVar("_T")


def started(run: Callable[[], _T], never: Callable[[_T], bool]) -> _T:
    """What `run` comes to; tried again while that is a command that was `never` started."""
    for _ in range(STARTS - 1):
        done = run()
        if not never(done):
            return done
        time.sleep(START_AGAIN_AFTER_S)
    return run()


@dataclass(frozen=True)
class Completed:
    """What a command inside a unit printed, and how it ended."""

    code: int
    output: str

    def json(self) -> Any:
        """The JSON that the output begins with; what comes after it was said about the way there.

        Raises ValueError.
        """
        return json.JSONDecoder().raw_decode(self.output)[0]


@dataclass(frozen=True)
class UnitState:
    """A unit as the engine sees it. `state`: one word, `running` if it runs. `out_of_memory`: when
    the engine last had to start it anew for lack of memory, by ISO 8601, if it says so."""

    name: str
    state: str
    restarts: int
    out_of_memory: str = ""


class Hosts(Protocol):
    """The units of one stack, by their names."""

    def physical(self, unit: str) -> str:
        """What the engine calls it."""

    def shell(self, unit: str, *command: str) -> str:
        """What a person types to run a command in a unit."""

    def remedy(self, unit: str, state: str = "") -> str:
        """What to do about a unit that does not run but is in `state`, as half a sentence."""

    def anew(self, unit: str) -> str:
        """How to have a unit made again from its definition; its volumes stay."""

    def run(self, unit: str, *command: str, timeout: int = 60) -> Completed:
        """Run a command in a unit; standard output and error together.

        Raises NotDeployedError when the unit does not run.
        """

    def converse(self, unit: str, *command: str) -> subprocess.Popen[str]:
        """Start a command in a unit with pipes to its standard input and output.

        When this process dies, the command's input ends: that is how it knows.
        """

    def task(self, *command: str, timeout: int = t.LONG_S) -> Completed:
        """Run one of the runner's commands (`backup`, …) to its end, where the runner is."""

    def states(self) -> Mapping[str, UnitState]:
        """Every unit of the stack by its name, running or not."""
