"""Patroni, which on kubernetes keeps the other nodes' addresses while the cluster's DNS is silent.

failsafe_mode lets a primary go on without the API server as long as it reaches every other node,
and it reaches them by name. The DNS that knows the names often stands on the machine of the API
server; and when an API server is back after most of a minute, all nodes are "not ready" at first,
so that the DNS Service has no endpoints for a moment. Either way a primary that could well ask the
others would demote itself for want of their addresses.

So: a name that cannot be looked up now (EAI_AGAIN) has the address that it had last. A name that
is gone (EAI_NONAME) is gone. A wrong address does no harm, for the certificate bears the name.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

# Of the nodes that a leader may have to ask one day: it asks nobody while all is well.
RENEW_S = 15.0

Found = list[Any]  # as socket.getaddrinfo returns it


class LastKnown:
    """In place of socket.getaddrinfo, for TCP."""

    def __init__(self, look_up: Callable[..., Found] = socket.getaddrinfo) -> None:
        self._look_up = look_up
        self._known: dict[str, Found] = {}

    def __call__(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Found:
        """Raises socket.gaierror as the system's own does, but for a name that it knew before."""
        try:
            found = self._look_up(host, port, family, type, proto, flags)
        except socket.gaierror as error:
            known = self._known.get(host)
            if error.errno != socket.EAI_AGAIN or not known or type not in (0, socket.SOCK_STREAM):
                raise
            return [(*entry[:4], (entry[4][0], port, *entry[4][2:])) for entry in known]
        streams = [entry for entry in found if entry[1] == socket.SOCK_STREAM]
        if isinstance(host, str) and streams:
            self._known[host] = streams
        return found

    def renew(self, hosts: Iterable[str]) -> None:
        """Look names up, to know them when it matters; one that cannot be now stays as it was."""
        for host in hosts:
            try:
                self(host, 0, type=socket.SOCK_STREAM)
            except OSError:
                continue


def _keep(names: LastKnown, members: Callable[[], dict[str, str] | None]) -> None:
    while True:
        urls = members()
        if isinstance(urls, dict):
            names.renew(host for url in urls.values() if (host := urlsplit(url).hostname))
        time.sleep(RENEW_S)


def main() -> None:
    """Patroni's own command line."""
    # Here, for the unit tests are run where there is no Patroni.
    from patroni import __main__ as program  # type: ignore[import-not-found]  # noqa: PLC0415

    # In a process of its own: what it asks the DCS with must not stay in this one.
    if code := subprocess.run(["found-cluster", "again"], check=False).returncode:
        sys.exit(code)

    class Node(program.Patroni):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            names = LastKnown()
            socket.getaddrinfo = names
            threading.Thread(
                target=_keep, args=(names, lambda: self.dcs.failsafe), daemon=True
            ).start()

    if "KUBERNETES_SERVICE_HOST" in os.environ:
        # Its process 1 forks, and goes on with this.
        program.patroni_main = lambda configuration: program.abstract_main(Node, configuration)
    sys.exit(program.main())


if __name__ == "__main__":
    main()
