"""Patroni's REST API, as seen from inside the stack: TLS both ways, standard library only."""

from __future__ import annotations

import copy
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

RUNNING = ("running", "streaming")


class PatroniError(Exception):
    """Patroni did not answer, or answered with a refusal; the message says which member."""


@dataclass(frozen=True)
class Member:
    """One line of Patroni's `GET /cluster`. `lag` is in bytes of WAL not yet received."""

    name: str
    role: str
    state: str
    lag: int | None
    timeline: int | None
    pending_restart: bool

    @property
    def leads(self) -> bool:
        return self.role in ("leader", "standby_leader")

    @property
    def healthy(self) -> bool:
        """The leader runs; a standby streams (Patroni says "running" when it does not)."""
        return self.state == "running" if self.leads else self.state == "streaming"


class Patroni:
    """Speaks to the members by name with a client certificate of the stack's CA."""

    def __init__(
        self, nodes: Sequence[str], port: int, ca: str, certificate: str, key: str
    ) -> None:
        self.nodes = list(nodes)
        self._port = port
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(certificate, key)
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def only(self, node: str) -> Patroni:
        """The same client, for one member."""
        client = copy.copy(self)
        client.nodes = [node]
        return client

    def call(
        self, node: str, method: str, path: str, body: Any = None, timeout: float = 5
    ) -> tuple[int, str]:
        """One request: the HTTP status and the body. Raises PatroniError when unreachable."""
        request = urllib.request.Request(
            f"https://{node}:{self._port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
        )
        try:
            with self._opener.open(request, timeout=timeout) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except (OSError, urllib.error.URLError) as error:
            raise PatroniError(
                f"{node}: Patroni does not answer {method} {path}: {error}"
            ) from None

    def get(self, node: str, path: str) -> Any:
        """The JSON answer of one member, whatever its status."""
        status, text = self.call(node, "GET", path)
        try:
            return json.loads(text)
        except ValueError:
            raise PatroniError(f"{node}: GET {path} answered {status}: {text[:200]}") from None

    def from_any(self, path: str) -> Any:
        """The JSON answer of the first member that answers."""
        failures = []
        for node in self.nodes:
            try:
                return self.get(node, path)
            except PatroniError as error:
                failures.append(str(error))
        raise PatroniError("; ".join(failures))

    def members(self) -> list[Member]:
        """The members that Patroni knows, as the first one that answers sees them."""
        return [_member(raw) for raw in self.from_any("/cluster").get("members", [])]

    def poke(self) -> None:
        """Wake every member's HA loop: an authenticated no-op PATCH of the configuration does."""
        for node in self.nodes:
            try:
                self.call(node, "PATCH", "/config", {}, timeout=1)
            except PatroniError:
                continue
            return


def _member(raw: dict[str, Any]) -> Member:
    lag = raw.get("lag")
    return Member(
        name=str(raw["name"]),
        role=str(raw.get("role", "")),
        state=str(raw.get("state", "")),
        lag=lag if isinstance(lag, int) else None,
        timeline=raw.get("timeline"),
        pending_restart=bool(raw.get("pending_restart")),
    )


def leader(members: Iterable[Member]) -> Member | None:
    """The running leader, if there is one."""
    return next((m for m in members if m.leads and m.state in RUNNING), None)


def wait_until(
    condition: Callable[[], Any], timeout: float, what: Callable[[], str] | str, pause: float = 0.2
) -> Any:
    """Poll until `condition` is true; a PatroniError counts as not yet. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    last = ""
    while True:
        try:
            value = condition()
            if value:
                return value
            last = ""
        except PatroniError as error:
            last = f" ({error})"
        if time.monotonic() >= deadline:
            text = what() if callable(what) else what
            raise TimeoutError(f"{text} after {timeout:.0f} s{last}")
        time.sleep(pause)
