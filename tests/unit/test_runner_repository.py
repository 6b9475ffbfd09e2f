"""What is read from pgBackRest's files, whole or split, and what a record of it never shows."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import ClassVar

import pytest

from elsapg import stackfile
from elsapg.definition.files import render
from elsapg.errors import MissingError
from elsapg.runner import repository, throwaway, versions
from elsapg.runner.s3 import _superseded
from tests.unit.test_runner_backup import CONFIG

PLAIN = """[global]
repo1-path=/wal
repo1-s3-bucket=b
repo1-s3-region=r
repo1-s3-endpoint=s3
repo1-s3-uri-style=path
repo1-storage-port=9000
repo1-storage-ca-file=/ca
repo1-retention-full=3
pg1-path=/elsewhere
"""
SECRET = "repo1-s3-key=access=1\nrepo1-s3-key-secret=hidden%1\nrepo1-cipher-pass=cipher\n"


def written(tmp_path: Path, plain: str, secret: str | None) -> tuple[Path, Path]:
    conf, includes = tmp_path / "pgbackrest.conf", tmp_path / "pgbackrest.d"
    includes.mkdir()
    conf.write_text(plain)
    if secret:
        (includes / "secrets.conf").write_text("[global]\n" + secret)
    return conf, includes


@pytest.mark.parametrize("split", [True, False])
def test_in_one_file_or_two(tmp_path: Path, split: bool) -> None:
    files = written(tmp_path, PLAIN + ("" if split else SECRET), SECRET if split else None)
    found = repository.read(*files)
    assert (found.bucket, found.prefix, found.name) == ("b", "/wal", "b/wal")
    assert (found.endpoint, found.path_style) == ("https://s3:9000", True)
    assert (found.access_key, found.secret_key) == ("access=1", "hidden%1")
    assert "hidden" not in repr(found) and "cipher" not in repr(found)


def test_without_keys_the_machines_own_role_counts(tmp_path: Path) -> None:
    found = repository.read(*written(tmp_path, PLAIN, "repo1-cipher-pass=cipher\n"))
    assert found.access_key is None


def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str = "s3") -> None:
    """What the container is configured for: two repositories."""
    second = PLAIN.replace("repo1-", "repo2-").replace("bucket=b", "bucket=c")
    second = second.replace("endpoint=s3", f"endpoint={endpoint}").partition("\n")[2]
    secret = SECRET + SECRET.replace("repo1-", "repo2-")
    conf, includes = written(tmp_path, PLAIN + second, secret)
    monkeypatch.setenv("PGBACKREST_CONFIG", str(conf))
    monkeypatch.setenv("PGBACKREST_CONFIG_INCLUDE_PATH", str(includes))


def test_each_of_two_has_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two(tmp_path, monkeypatch)
    assert [repository.read(number=n).name for n in (1, 2)] == ["b/wal", "c/wal"]


class Buckets:
    """Every bucket there is, and what was asked of it."""

    def __init__(self, where: repository.Repository) -> None:
        self.name = where.bucket

    asked: ClassVar[list[tuple[str, str]]] = []

    def versioning(self) -> str:
        return "Enabled" if ("on", self.name) in self.asked else "off"

    def keep_versions(self) -> None:
        self.asked.append(("on", self.name))

    def object_lock(self) -> bool:
        return False

    def forget(self, prefix: str, _before: datetime.datetime) -> int:
        self.asked.append((prefix, self.name))
        return 1


@pytest.mark.parametrize(("endpoint", "own"), [("s3", ["b", "c"]), ("elsewhere", ["b"])])
def test_versions_are_kept_in_each_bucket_that_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str, own: list[str]
) -> None:
    two(tmp_path, monkeypatch, endpoint)
    monkeypatch.setattr(versions, "Bucket", Buckets)
    monkeypatch.setattr(Buckets, "asked", [])
    config = dataclasses.replace(
        CONFIG, repositories=2, versions={"own": True, "days": 7}, dump={"prefix": "/daily"}
    )
    versions.ensure(config)
    assert Buckets.asked == [("on", name) for name in own]
    del Buckets.asked[:]
    monkeypatch.setattr(Buckets, "versioning", lambda _: "Enabled")
    told = versions.prune(config)
    assert [(one["bucket"], one["removed"]) for one in told] == [("b", 2), ("c", 1)]
    assert sorted(Buckets.asked) == [("daily/", "b"), ("wal/", "b"), ("wal/", "c")]


def test_what_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="says nothing of repo1-cipher-pass"):
        repository.read(*written(tmp_path, PLAIN, None))


def test_the_copys_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf, includes = written(tmp_path, PLAIN, SECRET)
    monkeypatch.setenv("PGBACKREST_CONFIG", str(conf))
    monkeypatch.setenv("PGBACKREST_CONFIG_INCLUDE_PATH", str(includes))
    monkeypatch.setattr(throwaway, "PGBACKREST", tmp_path / "made.conf")
    throwaway._write_configuration(CONFIG)
    made = (tmp_path / "made.conf").read_text()
    assert (tmp_path / "made.conf").stat().st_mode & 0o777 == 0o600
    assert "repo1-cipher-pass=cipher" in made
    # It restores here, expires nothing, and knows no node.
    assert "retention" not in made and "/elsewhere" not in made
    assert f"pg1-path={throwaway.DATA}" in made


class _Anything:
    s3_access_key = "A"
    s3_secret_key = "S"
    repository_cipher = "C"


def test_a_second_repository() -> None:
    settings = stackfile.load(
        {"archive": {"second": {"bucket": "other-bucket", "endpoint": "s3.example.org"}}}, "t"
    )
    text = render("pgbackrest.conf.j2", settings, secrets=_Anything(), node="pg-1")
    assert "repo2-s3-bucket=other-bucket\n" in text
    assert "repo2-s3-endpoint=s3.example.org\n" in text
    assert "repo2-storage-port=443\n" in text
    assert "repo2-storage-ca-file" not in text  # a public one's certificate is a public one
    own = stackfile.load({"archive": {"second": {"bucket": "other-bucket"}}}, "t")
    text = render("pgbackrest.conf.j2", own, secrets=_Anything(), node=None)
    assert "repo2-storage-port=9000\n" in text
    assert "repo2-storage-ca-file=/etc/elsapg/tls/ca.crt\n" in text
    # One that is away must not keep the other from its WAL, nor a backup from ending.
    assert "[global:archive-push]\nprocess-max=2\n" in text
    assert "io-timeout=10\n" in text and "[global:backup]\n" in text
    one = render("pgbackrest.conf.j2", stackfile.load({}, "t"), secrets=_Anything(), node=None)
    assert not any(word in one for word in ("repo2", "io-timeout=10\n", "[global:backup]"))
    # One access for both, and a passphrase for each; none of it in the plain file.
    secret = render("secrets.conf.j2", own, secrets=_Anything())
    for number in (1, 2):
        assert f"repo{number}-s3-key-secret=S\n" in secret
        assert f"repo{number}-cipher-pass=C\n" in secret
    assert "cipher-pass" not in text and "s3-key=" not in text


def at(day: int) -> datetime.datetime:
    return datetime.datetime(2026, 1, day, tzinfo=datetime.UTC)


def version(key: str, number: int, day: int, latest: bool = False) -> dict[str, object]:
    return {"Key": key, "VersionId": number, "LastModified": at(day), "IsLatest": latest}


def test_versions_go_by_when_they_were_superseded() -> None:
    page = {
        "Versions": [
            version("kept", 1, 1, True),  # old, and still what it is
            version("removed", 1, 1),
            version("lately removed", 1, 1),
            version("with the time of its removal", 1, 4),
            version("overwritten", 1, 1),
            version("overwritten", 2, 5),
            version("overwritten", 3, 20, True),
        ],
        "DeleteMarkers": [
            version("removed", 2, 3, True),
            version("lately removed", 2, 20, True),
            version("with the time of its removal", 2, 3, True),
            version("nothing below", 2, 3, True),
        ],
    }
    found = {(v["Key"], v["VersionId"]) for v in _superseded([page], at(10))}
    assert found == {
        ("removed", "1"),
        ("with the time of its removal", "1"),
        ("overwritten", "1"),
        ("nothing below", "2"),
    }


@pytest.mark.parametrize("minio", ["", "[minio_cache:v2,return:]"])
def test_a_page_may_end_between_a_marker_and_what_it_lies_over(minio: str) -> None:
    pages = [
        {
            "DeleteMarkers": [version("a", 2, 3, True), version("b", 2, 3, True)],
            "NextKeyMarker": f"b{minio}",
        },
        {"Versions": [version("b", 1, 1)], "NextKeyMarker": f"b{minio}"},
        {"Versions": [version("b", 0, 1), version("c", 1, 1, True)], "NextKeyMarker": "c"},
        {"Versions": [version("c", 1, 1, True)]},  # as versitygw does
    ]
    found = {(v["Key"], v["VersionId"]) for v in _superseded(pages, at(10))}
    assert found == {("a", "2"), ("b", "1"), ("b", "0")}
