"""The runbook's page for 3 a.m., as somebody follows it: its commands, in order, by sub-heading."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.stacks import ROOT

PAGE = ROOT / "docs" / "runbook.md"
TITLE = "## 3 a.m."


def commands(heading: str, page: Path = PAGE, title: str = TITLE) -> list[str]:
    """The indented lines below the sub-heading that begins so; those above the first one: ""."""
    text = page.read_text(encoding="utf-8")
    section = re.split(r"^## ", text[text.index(title) + 3 :], maxsplit=1, flags=re.M)[0]
    parts = re.split(r"^### (.*)$", section, flags=re.M)
    by_heading = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    [found] = [v for k, v in by_heading.items() if (k.startswith(heading) if heading else not k)]
    lines = re.findall(r"^    (\S.*)$", found, flags=re.M)
    assert lines, f"no commands below {heading!r}"
    return lines


def follow(
    lines: list[str], values: Mapping[str, str], names: Mapping[str, str] | None = None
) -> str:
    """Type the lines into a shell, with the reader's own values for what the page assigns, and the
    reader's own names for the example's; returns all output. The first failure fails.
    """
    script = []
    for line in lines:
        assigned = re.match(r"(export )?([A-Z_]+)=", line)
        typed = f"{assigned[0]}{values[assigned[2]]}" if assigned else line
        if line == "elsapg status":
            # Something may not have settled yet, and then a person looks again.
            typed = "timeout 300 bash -c 'until elsapg status; do sleep 2; done'"
        for example, name in (names or {}).items():
            typed = re.sub(rf"(?<=\s){example}(?=\s|$)", name, typed)
        script.append(typed)
    launcher = ROOT / ".elsapg" / "test-bin"
    launcher.mkdir(parents=True, exist_ok=True)
    command = launcher / "elsapg"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m elsapg.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    done = subprocess.run(
        ["bash", "-eu", "-c", "\n".join(script)],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{launcher}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "ELSAPG_ROOT": str(ROOT),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, f"the page does not work:\n{'; '.join(script)}\n{done.stdout}"
    return done.stdout
