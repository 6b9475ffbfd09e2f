"""The command line as a test uses it: to its end, or killed at a line of its output."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys

from elsapg.services.deployment import Deployment
from tests.stacks import elsapg


def iso(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat()


def restore(deployment: Deployment, *words: str, code: int = 0) -> str:
    """`elsapg restore` to its end, which is as it should be; its output."""
    stack = deployment.stack
    done = elsapg(
        deployment.root, "restore", "--stack", stack, "--confirm", stack, *words, timeout=1200
    )
    assert done.returncode == code, f"exit {done.returncode}:\n{done.stdout}"
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


def restore_killed(deployment: Deployment, at: str, *words: str) -> str:
    """`elsapg restore`, killed as soon as a line of its output begins with `at`."""
    stack = deployment.stack
    process = subprocess.Popen(
        [sys.executable, "-m", "elsapg.cli", "restore", "--stack", stack, "--confirm", stack,
         "--no-verify", *words],
        cwd=deployment.root,
        env={**os.environ, "ELSAPG_ROOT": str(deployment.root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith(at):
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait(60)
    assert at in output, f"it ended before {at!r}:\n{output}"
    return output
