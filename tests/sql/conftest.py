"""The server that the tests of this folder talk to; see `sql_server`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sql_server import Server, running


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A bootstrapped server, shared by all tests; a test leaves it as it found it."""
    with running() as server:
        server.bootstrap()
        yield server


@pytest.fixture
def empty_server() -> Iterator[Server]:
    """A server of one's own, not bootstrapped."""
    with running() as server:
        yield server
