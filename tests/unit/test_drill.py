"""The restore drill, without a stack: what tests/recovery/test_drill.py cannot bring about."""

from __future__ import annotations

from typing import Any, cast

import psycopg
import pytest

from elsapg.runner import drill
from elsapg.runner.config import Config

NO_CONFIG = cast("Config", None)


@pytest.mark.parametrize(("busy", "works"), [(0, True), (2, True), (3, False)])
def test_a_busy_standby_is_asked_again(
    busy: int, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def source(_config: Config, node: str) -> tuple[str, dict[str, Any]]:
        asked.append(node)
        if len(asked) <= busy:
            raise psycopg.errors.LockNotAvailable("the snapshots were not taken\nCONTEXT: more")
        return "0/1", {}

    monkeypatch.setattr(drill, "_source", source)
    if works:
        assert drill._held_source(NO_CONFIG, "pg-2") == ("0/1", {})
        assert len(asked) == busy + 1
        return
    with pytest.raises(drill.DrillError, match=r"pg-2 was too busy 3 times \(the snap.* taken\)"):
        drill._held_source(NO_CONFIG, "pg-2")
