"""The addresses that Patroni keeps while nobody can be asked for them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from elsapg.runner.patroni_node import LastKnown

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
Answer = str | int  # an address, or the error of a name that has none


def names(*answers: Answer) -> LastKnown:
    """Looks up in turn what is given here."""
    left = list(answers)

    def look_up(_host: Any, port: Any, _family: int, type: int, *_: int) -> list[Any]:
        answer = left.pop(0)
        if isinstance(answer, int):
            raise socket.gaierror(answer, "no")
        return [
            (socket.AF_INET, kind, 0, "", (answer, port))
            for kind in (TCP, UDP)
            if type in (0, kind)
        ]

    return LastKnown(look_up)


def address(found: list[Any]) -> Any:
    [entry] = found
    return entry[4]


def test_a_name_that_cannot_be_looked_up_keeps_its_address() -> None:
    known = names("10.0.0.7", socket.EAI_AGAIN, socket.EAI_AGAIN, "10.0.0.9")
    assert address(known("pg-2", 8008, type=TCP)) == ("10.0.0.7", 8008)
    assert address(known("pg-2", 8008, type=TCP)) == ("10.0.0.7", 8008)
    assert address(known("pg-2", 5432, 0, TCP)) == ("10.0.0.7", 5432)
    assert address(known("pg-2", 8008, type=TCP)) == ("10.0.0.9", 8008)


def test_a_newer_address_is_the_one_that_is_kept() -> None:
    known = names("10.0.0.7", "10.0.0.9", socket.EAI_AGAIN)
    known("pg-2", 8008, type=TCP)
    known("pg-2", 8008, type=TCP)
    assert address(known("pg-2", 8008, type=TCP)) == ("10.0.0.9", 8008)


@pytest.mark.parametrize(
    ("error", "ask"),
    [
        (socket.EAI_NONAME, lambda known: known("pg-2", 8008, type=TCP)),
        (socket.EAI_AGAIN, lambda known: known("pg-3", 8008, type=TCP)),
        (socket.EAI_AGAIN, lambda known: known("pg-2", 53, type=UDP)),
    ],
    ids=["gone", "never known", "not TCP"],
)
def test_what_stays_an_error(error: int, ask: Callable[[LastKnown], Any]) -> None:
    known = names("10.0.0.7", error)
    known("pg-2", 8008, type=TCP)
    with pytest.raises(socket.gaierror):
        ask(known)


def test_names_are_known_before_anybody_needs_them() -> None:
    known = names("10.0.0.7", socket.EAI_NONAME, "10.0.0.8", *[socket.EAI_AGAIN] * 2)
    known.renew(["pg-1", "pg-2", "pg-3"])
    assert address(known("pg-1", 8008, type=TCP)) == ("10.0.0.7", 8008)
    assert address(known("pg-3", 8008, type=TCP)) == ("10.0.0.8", 8008)
