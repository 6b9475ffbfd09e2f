"""Dumps: what is kept, what is removed and when; what a dump must be; what a manifest is worth."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
from types import SimpleNamespace
from typing import IO, Any

import pytest

from elsapg.errors import UsageError
from elsapg.runner import dumps, health, sealed
from elsapg.runner.dumps import Dump, DumpError
from elsapg.runner.s3 import Object

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
KEY = "a passphrase"


def label(days: float) -> str:
    return f"{NOW - datetime.timedelta(days=days):%Y-%m-%dT%H-%M-%SZ}"


def manifest(of: str, dump_bytes: int = 10) -> dict[str, Any]:
    return sealed.sign(
        {
            "label": of,
            "databases": {"d": {"dump_bytes": dump_bytes, "database_bytes": 1}},
            "objects": {"d.tar.enc": {"bytes": 5, "sha256": "x"}},
        },
        KEY,
    )


class FakeBucket:
    """A bucket in memory that keeps the order of what was removed."""

    def __init__(self, *labels: str) -> None:
        self.held: dict[str, bytes] = {}
        self.removed: list[str] = []
        self.abandoned: list[str] = []
        for one in labels:
            self.held[f"daily/{one}/d.tar.enc"] = b"12345"
            self.held[f"daily/{one}/manifest.json"] = json.dumps(manifest(one)).encode()

    def objects(self, prefix: str) -> list[Object]:
        return [Object(k, len(v), NOW) for k, v in self.held.items() if k.startswith(prefix)]

    def read(self, key: str) -> bytes:
        return self.held[key]

    def delete(self, keys: Any) -> None:
        for key in keys:
            self.removed.append(key)
            del self.held[key]

    def abandon(self, prefix: str, _before: datetime.datetime) -> int:
        self.abandoned.append(prefix)
        return 0


def kept(bucket: FakeBucket, days: int) -> list[str]:
    found = dumps.dumps(bucket, "/daily", KEY)  # type: ignore[arg-type]
    dumps.retain(bucket, "/daily", found, days)  # type: ignore[arg-type]
    return [d.label for d in dumps.dumps(bucket, "/daily", KEY)]  # type: ignore[arg-type]


def test_by_age() -> None:
    bucket = FakeBucket(label(40), label(31), label(29), label(1))
    assert kept(bucket, 30) == [label(29), label(1)]
    # What is half removed is no dump any more.
    assert bucket.removed[0] == f"daily/{label(40)}/manifest.json"


def test_the_newest_stays_however_old() -> None:
    assert kept(FakeBucket(label(400), label(300)), 30) == [label(300)]


def test_what_never_became_a_dump_goes_after_a_day() -> None:
    bucket = FakeBucket(label(1))
    bucket.held[f"daily/{label(2)}/d.tar.enc"] = b"1"
    bucket.held[f"daily/{label(0.1)}/d.tar.enc"] = b"1"  # may be under way
    bucket.held["daily/notes.txt"] = b"somebody's"
    kept(bucket, 30)
    assert bucket.removed == [f"daily/{label(2)}/d.tar.enc"]
    assert bucket.abandoned == ["daily/"]


def test_without_a_manifest_there_is_no_dump() -> None:
    bucket = FakeBucket(label(2), label(1))
    del bucket.held[f"daily/{label(1)}/manifest.json"]
    assert [d.label for d in dumps.dumps(bucket, "/daily", KEY)] == [label(2)]  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["databases", "objects", "label"])
def test_a_changed_manifest_is_refused(change: str) -> None:
    bucket = FakeBucket(label(1))
    key = f"daily/{label(1)}/manifest.json"
    told = json.loads(bucket.held[key])
    told[change] = {"d": {"bytes": 1, "sha256": "evil", "dump_bytes": 1, "database_bytes": 1}}
    bucket.held[key] = json.dumps(told).encode()
    with pytest.raises(sealed.SealError, match="was not signed"):
        dumps.dumps(bucket, "/daily", KEY)  # type: ignore[arg-type]


def test_a_manifest_under_another_label_is_refused() -> None:
    bucket = FakeBucket(label(2))
    bucket.held[f"daily/{label(1)}/manifest.json"] = bucket.held[f"daily/{label(2)}/manifest.json"]
    with pytest.raises(sealed.SealError, match="is that of"):
        dumps.read_manifest(bucket, "/daily", label(1), KEY)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["../x", "latest", "2026-01-01", ""])
def test_a_label_that_is_none(wrong: str) -> None:
    with pytest.raises(UsageError, match="is no dump's label"):
        dumps.read_manifest(FakeBucket(), "/daily", wrong, KEY)  # type: ignore[arg-type]


def test_a_label_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="there is no dump"):
        dumps.read_manifest(FakeBucket(), "/daily", label(1), KEY)  # type: ignore[arg-type]


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("before", "now", "accepted", "fails"),
    [
        (None, 1, False, False),
        (10 * MIB, 5 * MIB, False, True),
        (10 * MIB, 5 * MIB + 1, False, False),
        (10 * MIB, 5 * MIB, True, False),
        (MIB - 1, 1, False, False),
    ],
)
def test_a_dump_of_half_the_size(before: int | None, now: int, accepted: bool, fails: bool) -> None:
    last = None if before is None else Dump(label(1), manifest(label(1), before))
    with pytest.raises(DumpError, match="less than half") if fails else contextlib.nullcontext():
        dumps._compare_size("d", now, last, accepted)


def test_tables_in_the_list() -> None:
    text = """;
; Archive created at 2026-11-25
215; 1259 16500 TABLE elsa_workflows bookmarks elsa_owner
3580; 0 16500 TABLE DATA elsa_workflows bookmarks elsa_owner
3581; 0 16501 TABLE DATA Elsa Workflow Definitions elsa_owner
"""
    assert dumps._listed(text) == {"elsa_workflows bookmarks", "Elsa Workflow Definitions"}


class Reader:
    """What boto3 does with a stream."""

    @staticmethod
    def all(stream: IO[bytes]) -> bytes:
        return b"".join(iter(lambda: stream.read(7), b""))


def test_sealed_and_opened(tmp_path: Any) -> None:
    with sealed.encrypted(["printf", "the rows"], KEY) as stream:
        stored = Reader.all(stream)  # type: ignore[arg-type]
    assert stored.startswith(b"Salted__")
    assert b"rows" not in stored
    assert (stream.size, stream.sha256) == sealed.digest(io.BytesIO(stored))
    path = tmp_path / "x"
    path.write_bytes(stored)
    with path.open("rb") as file:
        sealed.decrypt(file, KEY, ["cp", "/dev/stdin", str(tmp_path / "y")])
    assert (tmp_path / "y").read_bytes() == b"the rows"
    with path.open("rb") as file, pytest.raises(sealed.SealError):
        sealed.decrypt(file, "another", ["cat"])


def test_a_source_that_fails_is_told() -> None:
    with pytest.raises(sealed.SealError, match="bash failed"):  # noqa: SIM117
        with sealed.encrypted(["bash", "-c", "echo some; echo why >&2; exit 3"], KEY) as stream:
            Reader.all(stream)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("due", "done", "since", "late"),
    [
        (100, 0, None, False),  # no backup yet
        (100, 0, 200, False),  # the stack is younger
        (100, 50, 10, True),
        (100, 101, 10, False),
    ],
)
def test_overdue(due: float, done: float, since: float | None, late: bool) -> None:
    assert health.overdue(due, done, since) is late


@pytest.mark.parametrize(
    ("hour", "done", "due"),
    [
        (3.9, "12-03T04:05", None),
        (3.9, "12-02T04:05", "12-03 04:00"),
        # The one of today is given time, and does not hide that yesterday's was missed.
        (4.1, "12-03T04:05", None),
        (4.1, "12-02T04:05", "12-03 04:00"),
        (6.1, "12-03T04:05", "12-04 04:00"),
        (6.1, "12-04T05:30", None),
    ],
)
def test_what_is_due_now_does_not_hide_what_was_missed(
    hour: float, done: str, due: str | None
) -> None:
    def moment(text: str) -> float:
        return datetime.datetime.fromisoformat(f"2026-{text}+00:00").timestamp()

    now = moment("12-04T00:00") + hour * 3600
    texts = health._judged("check", "0 4 * * *", moment(done), moment("11-01T00:00"), {}, now)
    assert [f"was due 2026-{due}Z" in text for text in texts] == ([True] if due else [])


@pytest.mark.parametrize(
    ("full", "incremental", "late"),
    [
        ("11-29T01:05", "12-04T01:05", []),
        # Each night's hides nothing of the week's that everything rests on.
        ("11-22T01:05", "12-04T01:05", ["a full backup was due 2026-11-29 01:00Z"]),
        ("11-29T01:05", "12-02T01:05", ["a backup was due 2026-12-04 01:00Z"]),
    ],
)
def test_each_kind_of_backup_is_missed_by_itself(
    full: str, incremental: str, late: list[str]
) -> None:
    def made(kind: str, text: str) -> dict[str, Any]:
        return {"type": kind, "timestamp": {"start": moment(text)}}

    def moment(text: str) -> float:
        return datetime.datetime.fromisoformat(f"2026-{text}+00:00").timestamp()

    config = SimpleNamespace(schedules={"full": "0 1 * * 0", "incr": "0 1 * * 1-6"}, repositories=1)
    info = {"backup": [made("full", full), made("incr", incremental)]}
    texts = health._backups(config, info, 1, moment("11-01T00:00"), moment("12-04T12:00"))  # type: ignore[arg-type]
    assert [text.partition(",")[0] for text in texts] == late


def test_what_is_said_of_a_job() -> None:
    now = NOW.timestamp()

    def judged(done: float | None, **run: Any) -> str:
        return " | ".join(health._judged("drill", "0 5 * * 0", done, now - 40 * 86400, run, now))

    ended = {"started": now - 60, "finished": now, "ok": True, "message": "fine"}
    assert judged(now, ended=ended, last=ended) == ""
    assert "there is none; `elsapg drill`" in judged(0.0)
    failed = {**ended, "ok": False, "message": "rows differ"}
    assert "the last restore drill failed" in judged(now, ended=failed, last=failed)
    hangs = {"started": now - 20 * 3600, "finished": None, "ok": None, "message": None}
    assert "began 20 h ago and has not ended" in judged(now, last=hangs)
    # S3 is away: that is told elsewhere, and nobody knows whether one is overdue.
    assert judged(None) == ""
