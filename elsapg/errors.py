"""The one exception hierarchy: what a user can be told, and the exit code a script can test.

Every message names the thing, its value and the way out, in one or two lines. The CLI prints
it without a traceback; anything that is not an `ElsapgError` is a defect of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class ElsapgError(Exception):
    """A user-facing failure. `str(error)` is the whole message; it never holds a secret."""

    exit_code: ClassVar[int] = 1


class UsageError(ElsapgError):
    """The command line asks for something that cannot be asked for."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a stack's settings: its key, the value found, and the way out."""

    key: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value}: {self.reason}"


class SettingsError(ElsapgError):
    """A stack's settings do not hold together. Lists every problem; nothing was created."""

    exit_code = 3

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__(f"{source} has {count}; nothing was created:\n{lines}")


class MissingError(ElsapgError):
    """This machine lacks something (a daemon, a command, a right); says what installs it."""

    exit_code = 4


class LockedError(ElsapgError):
    """Another run holds the stack."""

    exit_code = 5


class DeploymentError(ElsapgError):
    """Creating, changing or removing resources failed."""

    exit_code = 6


class UnhealthyError(ElsapgError):
    """The deployment runs, but something that must hold does not."""

    exit_code = 7


class NotDeployedError(ElsapgError):
    """The stack, or the part of it that was asked for, does not run."""

    exit_code = 8


class UnexpectedChangesError(ElsapgError):
    """`--expect-no-changes` was given and there are changes."""

    exit_code = 9
