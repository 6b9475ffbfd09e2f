"""A `kubectl` on PATH that answers as it is told, and remembers what it was asked."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = f"""#!{sys.executable}
import json, re, sys, time
folder = {{folder!r}}
words = sys.argv[1:]
line = " ".join(words)
stdin = sys.stdin.read() if "--filename=-" in words else ""
with open(folder + "/asked", "a") as log:
    log.write(json.dumps([words, stdin]) + "\\n")
for rule in json.load(open(folder + "/rules")):
    if re.search(rule["when"], line):
        sys.stdout.write(rule["stdout"])
        ran = not rule["code"] or "command terminated with exit code" in rule["stderr"]
        if "-c" in words and ran and rule["whole"]:
            # The shell around a command says the last word.
            sys.stdout.write("\\x1e%d" % rule["code"])
        sys.stdout.flush()
        sys.stderr.write(rule["stderr"])
        if rule["stays"]:
            time.sleep(600)
        sys.exit(rule["code"])
sys.stderr.write("fake kubectl was not told about: " + line)
sys.exit(99)
"""


@dataclass
class FakeKubectl:
    """Rules are tried in their order; the first one that matches answers."""

    folder: Path

    def on(
        self,
        when: str,
        stdout: Any = "",
        stderr: str = "",
        code: int = 0,
        stays: bool = False,
        whole: bool = True,
    ) -> None:
        """Answer a command line that the pattern is found in. `stays`: it does not end.
        Not `whole`: the connection to the command inside a pod breaks.
        """
        text = stdout if isinstance(stdout, str) else json.dumps(stdout)
        rule = {
            "when": when, "stdout": text, "stderr": stderr, "code": code, "stays": stays,
            "whole": whole,
        }  # fmt: skip
        path = self.folder / "rules"
        path.write_text(json.dumps([rule, *json.loads(path.read_text())]))

    @property
    def asked(self) -> list[list[str]]:
        """The words of each run, without those that are the same in all."""
        found = []
        for words, _ in self._log():
            assert "--namespace=elsapg-test" in words
            common = ("--namespace=", "--request-timeout=")
            found.append([w for w in words if not w.startswith(common)])
        return found

    @property
    def given(self) -> list[Any]:
        """What came by standard input, parsed."""
        return [json.loads(stdin) for _, stdin in self._log() if stdin]

    def _log(self) -> list[Any]:
        path = self.folder / "asked"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    folder = tmp_path / "kubectl"
    folder.mkdir()
    (folder / "rules").write_text("[]")
    command = folder / "bin" / "kubectl"
    command.parent.mkdir()
    command.write_text(_SCRIPT.format(folder=str(folder)))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return FakeKubectl(folder)


def pod(name: str, component: str, *containers: str, **changed: Any) -> dict[str, Any]:
    """A pod whose containers run. `changed`: what its status says instead."""
    return {
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/component": component},
            **changed.pop("metadata", {}),
        },
        "spec": {
            "nodeName": f"machine-of-{name}",
            "containers": [{"name": c} for c in containers],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {"name": c, "ready": True, "restartCount": 0, "state": {"running": {}}}
                for c in containers
            ],
            **changed,
        },
    }


def pg(number: int, **changed: Any) -> dict[str, Any]:
    return pod(f"pg-{number}", "pg", "postgres", "agent", **changed)


def pooler(letter: str, **changed: Any) -> dict[str, Any]:
    return pod(f"pgbouncer-7d9-{letter}", "pgbouncer", "pgbouncer", "gate", "readers", **changed)


def listed(*items: Any) -> dict[str, Any]:
    return {"items": list(items)}
