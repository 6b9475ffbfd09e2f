"""What `elsapg doctor` says about one thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that must be there."""

    name: str
    ok: bool
    found: str
    way_out: str = ""
