"""A port of a pod, as a port of this machine: for people, migrations and checks.

It goes by the API server, so that no network policy has to be opened for it.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from elsapg.errors import UnhealthyError
from elsapg.targets.kubernetes.kubectl import Follower, Kubectl

LOCAL = "127.0.0.1"
READY_S = 20.0


@dataclass(frozen=True)
class Forward:
    """A port that leads there, for as long as `follower` runs."""

    port: int
    follower: Follower

    def wait(self) -> None:
        """Until it leads nowhere any more: the pod that it led to is gone."""
        self.follower.wait()

    def ends_within(self, seconds: float) -> bool:
        """Whether it leads nowhere any more, or will not in a moment."""
        return self.follower.wait(seconds)


@contextlib.contextmanager
def forward(kubectl: Kubectl, target: str, port: int, local: int = 0) -> Iterator[Forward]:
    """Forward a free port (or `local`) of 127.0.0.1 to `port` of `target`: `pod/…`, `service/…`.

    A service stands for one of its pods, chosen now. Raises an ElsapgError if it cannot be.
    """
    words = ("port-forward", f"--address={LOCAL}", target, f"{local or ''}:{port}")
    with kubectl.follow(*words, complaints=True) as follower:
        yield Forward(_port(kubectl, follower, target), follower)


def _port(kubectl: Kubectl, follower: Follower, target: str) -> int:
    said: list[str] = []
    deadline = time.monotonic() + READY_S
    while True:
        try:
            line = follower.line(deadline - time.monotonic())
        except TimeoutError:
            raise UnhealthyError(
                f"{target} cannot be reached: no port was forwarded within {READY_S:.0f} s"
            ) from None
        if line is None:
            raise kubectl.explain("\n".join(said))
        found = re.match(rf"Forwarding from {LOCAL}:(\d+) ", line)
        if found:
            return int(found[1])
        said.append(line)
