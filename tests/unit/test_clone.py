"""A clone's settings: whatever the source writes to, the clone writes elsewhere."""

from __future__ import annotations

from elsapg.services.clone import _own_archive


def test_a_clone_writes_to_places_of_its_own() -> None:
    source = {
        "bucket": "b",
        "prefix": "/wal",
        "dump_prefix": "/daily",
        "second": {"bucket": "other", "prefix": "/wal", "endpoint": "s3.x"},
    }
    assert _own_archive(source, "next") == {
        "bucket": "b",
        "prefix": "/next",
        "dump_prefix": "/next-daily",
        "second": {"bucket": "other", "prefix": "/next", "endpoint": "s3.x"},
    }
    assert "second" not in _own_archive({}, "next")
