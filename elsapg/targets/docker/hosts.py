"""Runs commands inside a stack's containers, and says which of them run."""

from __future__ import annotations

import shlex
import shutil
import subprocess

from elsapg.definition import topology as t
from elsapg.errors import MissingError, NotDeployedError
from elsapg.targets.docker import daemon as d
from elsapg.targets.hosts import Completed, UnitState


def _client() -> str:
    found = shutil.which("docker")
    if found is None:
        raise MissingError("the docker command is not on PATH: `elsapg setup` installs it")
    return found


class DockerHosts:
    """The containers of one stack, found by name and label."""

    def __init__(self, stack: str) -> None:
        self._stack = stack

    def physical(self, unit: str) -> str:
        """The container's name."""
        return d.physical_name(self._stack, unit)

    def shell(self, unit: str, *command: str) -> str:
        return f"docker exec {self.physical(unit)} {shlex.join(command)}"

    def remedy(self, unit: str, state: str = "") -> str:
        if state == "restarting":
            return f"`docker logs --tail 50 {self.physical(unit)}` says why it ends again and again"
        if state == "paused":
            return f"`docker unpause {self.physical(unit)}` lets it go on"
        # One command brings back whatever is missing.
        return f"`elsapg up --stack {self._stack} --refresh` brings it back"

    def anew(self, unit: str) -> str:
        name = self.physical(unit)
        return f"`docker rm -f {name}`, then `elsapg up --refresh` makes it anew; its volumes stay"

    def run(self, unit: str, *command: str, timeout: int = 60) -> Completed:
        """Run a command in a unit; standard output and error together.

        Raises NotDeployedError when the unit does not run.
        """
        with d.daemon(timeout=timeout) as client:
            found = client.containers.list(
                filters={"name": f"^{self.physical(unit)}$"}, ignore_removed=True
            )
            if not found:
                raise NotDeployedError(
                    f"{unit} of stack {self._stack!r} does not run: "
                    f"`elsapg status --stack {self._stack}` says what does, {self.remedy(unit)}"
                )
            return Completed(*d.execute(found[0], command))

    def converse(self, unit: str, *command: str) -> subprocess.Popen[str]:
        """Start a command in a unit with pipes to its standard input and output.

        When this process dies, the command's input ends: that is how it knows.
        """
        return subprocess.Popen(
            [_client(), "exec", "-i", self.physical(unit), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def task(self, *command: str, timeout: int = t.LONG_S) -> Completed:
        """In the runner, which waits for its schedule meanwhile."""
        return self.run("runner", "python3", "-m", "elsapg.runner", *command, timeout=timeout)

    def states(self) -> dict[str, UnitState]:
        """Every container of the stack by unit name, running or not."""
        with d.daemon() as client:
            label = f"{d.STACK_LABEL}={self._stack}"
            found = client.containers.list(all=True, filters={"label": label}, ignore_removed=True)
            states = {}
            for container in found:
                name = str(container.labels.get(d.UNIT_LABEL, container.name))
                states[name] = UnitState(
                    name, container.status, int(container.attrs.get("RestartCount", 0))
                )
            return states
