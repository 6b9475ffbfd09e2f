"""Ports of this machine: whether one can be had, and where several in a row can."""

from __future__ import annotations

import socket

from elsapg.errors import UsageError

LOOPBACK = "127.0.0.1"


def trouble(port: int, address: str = LOOPBACK) -> str | None:
    """Why nobody can listen on it now; None if one can."""
    with socket.socket() as probe:
        # As Docker's proxy does; without it a port just closed would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.strerror or "not usable"
    return None


def free_in_a_row(count: int, first: int, below: int = 65536) -> int:
    """The first of `count` ports in a row, from `first` on, that are free. Raises UsageError."""
    start = first
    while start + count < below:
        taken = [port for port in range(start, start + count) if trouble(port)]
        if not taken:
            return start
        start = taken[-1] + 1
    raise UsageError(f"no {count} free ports in a row from {first} on; free some and run again")
