"""Runs pgBackRest and reads its repositories for `elsapg.runner.archive`: those that this container
is configured for, or another one, read only, by a configuration file of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from elsapg.errors import DeploymentError
from elsapg.runner import archive

STANZA = "elsa"
SETTLES_S = 5.0
_T = TypeVar("_T")
LOOK_TIMEOUT_S = 5
# How `info` says that a repository is not readable: the wrong key, or S3 does not answer.
_UNREADABLE = 99
# A wrong key is found out by what it decrypts: by its padding, or else as a file of nonsense.
_CRYPTO = (
    *("cipher header invalid", "unable to flush", "[029]", "[031]", "CryptoError", "[095]"),
    *("key/value found outside of section", "FormatError"),
)
_S3_ERROR = re.compile(r"<Error><Code>(\w+)</Code><Message>([^<]*)</Message>")
_AWAY = ("HostConnectError", "unable to connect", "unable to get address", "timeout", "[049]")


class RepositoryError(DeploymentError):
    """pgBackRest failed; the message is its own, and what it likely means."""


@dataclass(frozen=True)
class Repository:
    """A stanza's repository, or all of them: WAL goes to each, a backup lies in one.

    `config`: a pgBackRest configuration other than the container's. `number`: one of them only.
    """

    stanza: str = STANZA
    config: Path | None = None
    number: int | None = None

    def at(self, number: int) -> Repository:
        """One of them."""
        return replace(self, number=number)

    def command(self, *arguments: str, stanza: bool = True) -> list[str]:
        """The words of a pgBackRest command."""
        words = ["pgbackrest"]
        if self.config is not None:
            words.append(f"--config={self.config}")
        if stanza:
            words.append(f"--stanza={self.stanza}")
        if self.number is not None:
            words.append(f"--repo={self.number}")
        return [*words, *arguments]

    def environment(self) -> dict[str, str]:
        """This process's, without what would mix the container's own repository into another."""
        own = ("PGBACKREST_CONFIG", "PGBACKREST_CONFIG_INCLUDE_PATH") if self.config else ()
        return {name: value for name, value in os.environ.items() if name not in own}

    def run(self, *arguments: str, stanza: bool = True) -> str:
        """Run it and return what it printed. Raises RepositoryError."""
        done = subprocess.run(
            self.command(*arguments, stanza=stanza),
            capture_output=True,
            encoding="utf-8",
            # Of a file that was decrypted with the wrong key it quotes whatever came out.
            errors="replace",
            check=False,
            env=self.environment(),
        )
        if done.returncode:
            raise RepositoryError(explain(arguments, done.returncode, done.stderr + done.stdout))
        return done.stdout

    def info(self) -> dict[str, Any]:
        """pgBackRest's own account: backups, archive range, status; {} if there is no stanza.

        Its backups the oldest first by the WAL that they end with. pgBackRest has them by label:
        an incremental one comes beside its full one, however old that is, and a clock that was
        wrong is in the label.

        Raises RepositoryError when no repository can be read: one is enough to restore from.
        """
        # By default it waits three times half a minute for an S3 that does not answer.
        text = self.run("--output=json", f"--io-timeout={LOOK_TIMEOUT_S}", "info")
        found = json.loads(text, strict=False)
        if not found:
            return {}
        stanza = dict(found[0])
        # It still exits with 0.
        troubles = unreadable(stanza)
        if troubles and len(troubles) == len(stanza["repo"]):
            raise RepositoryError(min(troubles.items())[1])
        stanza["backup"] = sorted(stanza.get("backup", []), key=_age)
        return stanza

    def archive(self) -> archive.Archive:
        """What can be restored. Raises RepositoryError, also when there is no stanza."""
        info = self.info()
        if not info.get("db"):
            raise RepositoryError(
                f"the repository holds no stanza {self.stanza!r}: nothing was ever archived there; "
                "see that archive.bucket and archive.prefix are those of the backups"
            )
        listing: dict[str, Any] = {}
        histories: dict[int, str] = {}
        # Of each repository the newest: a major upgrade begins another.
        for number, newest in {db.get("repo-key", 1): db for db in info["db"]}.items():
            one, folder = (
                self.at(number),
                f"archive/{self.stanza}/{newest['version']}-{newest['id']}",
            )
            listed = json.loads(
                one.run("--output=json", "--recurse", "repo-ls", folder, stanza=False)
            )
            files = {path: entry for path, entry in listed.items() if entry.get("type") == "file"}
            listing |= files
            histories |= {
                int(path[:8], 16): one.run("repo-get", f"{folder}/{path}", stanza=False)
                for path in files
                if path.endswith(".history")
            }
        return archive.read(info, listing, histories)


def _age(backup: Mapping[str, Any]) -> tuple[str, int]:
    """By timeline first, which only grow."""
    return str(backup["archive"]["stop"]), int(backup["timestamp"]["stop"])


def unreadable(info: Mapping[str, Any]) -> dict[int, str]:
    """Why repositories of pgBackRest's account cannot be read, by their numbers."""
    states = {one.get("key", 1): one.get("status", {}) for one in info.get("repo", [])}
    return {
        number: explain(("info",), _UNREADABLE, str(state.get("message")))
        for number, state in states.items()
        if state.get("code") == _UNREADABLE
    }


def settle(look: Callable[[], _T], unsure: Callable[[_T], bool]) -> _T:
    """What `look` comes to once it is sure, or after SETTLES_S seconds.

    WAL is pushed by several processes, so that a segment may come after the one behind it: for a
    moment that looks like a gap.
    """
    deadline = time.monotonic() + SETTLES_S
    while unsure(found := look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def explain(arguments: Sequence[str], code: int, output: str) -> str:
    """pgBackRest's error in one line, with what to do about the usual ones."""
    # Of a file that is no text, only what comes before the quotation.
    lines = [re.split(r"[^ -~]", line, maxsplit=1)[0].strip() for line in output.split("\n")]
    told = " ".join([line for line in lines if "ERROR" in line] or list(filter(None, lines))[:3])
    # The command stands behind its options, and before its own arguments.
    command = next((word for word in arguments if not word.startswith("-")), "pgbackrest")
    hint = ""
    refused = _S3_ERROR.search(output)
    if refused:
        # In the middle of headers that nobody wants to read.
        told = told.partition(": *** ")[0]
        hint = (
            f"; S3 answers {refused[1]}: {refused[2]} See its keys, and elsapg:archive (endpoint, "
            "bucket, region)"
        )
    elif any(word in output for word in _CRYPTO):
        hint = (
            "; it is damaged, or encrypted with another key"
            if command in ("archive-get", "restore")
            else "; the key of the repository (repository-cipher) does not open it: it is another "
            "stack's, or an earlier one's of this name. Give the old key back, or name an empty "
            "place (elsapg:archive.bucket or archive.prefix)"
        )
    elif any(word in output for word in _AWAY) and "before standby" not in output:
        hint = "; S3 does not answer: see that it runs and can be reached, then run this again"
    return f"pgbackrest {command} failed ({code}): {told[-600:]}{hint}"
