"""The one module that speaks S3: boto3, with what pgBackRest is told about the bucket.

Uploads carry a checksum that the server compares; large ones go in parts, which a failed upload
takes back, and `abandon` takes back those of a process that was killed.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from elsapg.errors import UnhealthyError
from elsapg.runner.repository import Repository

PART_BYTES = 16 * 1024 * 1024
_DELETE_AT_ONCE = 1000


class S3Error(UnhealthyError):
    """S3 could not be reached, or refused; the message is what it said."""


@dataclass(frozen=True)
class Object:
    """An object in the bucket."""

    key: str
    size: int
    modified: datetime.datetime


class Bucket:
    """The repository's bucket."""

    def __init__(self, repository: Repository, *, patience: int = 4) -> None:
        # Half a second of imports, and only images that have it need it.
        import boto3  # type: ignore[import-not-found]  # noqa: PLC0415
        from boto3.s3.transfer import TransferConfig  # type: ignore[import-not-found]  # noqa: PLC0415
        from botocore.config import Config  # type: ignore[import-not-found]  # noqa: PLC0415

        self.name = repository.bucket
        self._where = f"s3://{repository.bucket} at {repository.endpoint}"
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4
        )
        self._client = boto3.client(
            "s3",
            endpoint_url=repository.endpoint,
            region_name=repository.region,
            aws_access_key_id=repository.access_key,
            aws_secret_access_key=repository.secret_key,
            verify=repository.ca_file or True,
            config=Config(
                connect_timeout=5,
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": patience},
                proxies={},
                s3={"addressing_style": "path" if repository.path_style else "virtual"},
            ),
        )

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error  # type: ignore[import-not-found]  # noqa: PLC0415
        from botocore.exceptions import (  # type: ignore[import-not-found]  # noqa: PLC0415
            BotoCoreError,
            ClientError,
        )

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError) as error:
            told = " ".join(str(error).split())[:400]
            raise S3Error(f"{what} ({self._where}): {told}") from None

    def put(self, key: str, body: IO[bytes]) -> None:
        """Store what `body` gives, of any length, under `key`."""
        with self._asking(f"{key} was not stored"):
            self._client.upload_fileobj(
                body,
                self.name,
                key,
                ExtraArgs={"ChecksumAlgorithm": "SHA256"},
                Config=self._transfer,
            )

    def size(self, key: str) -> int:
        with self._asking(f"{key} was not found"):
            return int(self._client.head_object(Bucket=self.name, Key=key)["ContentLength"])

    def read(self, key: str) -> bytes:
        """The whole of a small object."""
        with self._asking(f"{key} was not read"):
            body = self._client.get_object(Bucket=self.name, Key=key)["Body"]
            return bytes(body.read())

    def fetch(self, key: str, into: IO[bytes]) -> None:
        """Write an object into a file that can seek: parts arrive in any order."""
        with self._asking(f"{key} was not read"):
            self._client.download_fileobj(self.name, key, into, Config=self._transfer)

    def objects(self, prefix: str) -> list[Object]:
        """What is there below `prefix`."""
        found: list[Object] = []
        with self._asking(f"{prefix} was not listed"):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.name, Prefix=prefix):
                found += [_object(raw) for raw in page.get("Contents", [])]
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; with versioning they get a delete marker."""
        wanted = list(keys)
        for start in range(0, len(wanted), _DELETE_AT_ONCE):
            some = [{"Key": key} for key in wanted[start : start + _DELETE_AT_ONCE]]
            with self._asking(f"{len(some)} objects were not removed"):
                done = self._client.delete_objects(
                    Bucket=self.name, Delete={"Objects": some, "Quiet": True}
                )
            for error in done.get("Errors", []):
                raise S3Error(
                    f"{error.get('Key')} was not removed ({self._where}): {error.get('Message')}"
                )

    def versioning(self) -> str:
        """ "Enabled", "Suspended" or "off"; "unknown" where the S3 does not tell."""
        try:
            with self._asking("versioning was not told"):
                told = self._client.get_bucket_versioning(Bucket=self.name)
        except S3Error:
            return "unknown"
        return str(told.get("Status") or "off")

    def keep_versions(self) -> None:
        """Switch versioning on: what is overwritten or removed stays as an older version."""
        with self._asking("versioning was not switched on"):
            self._client.put_bucket_versioning(
                Bucket=self.name, VersioningConfiguration={"Status": "Enabled"}
            )

    def object_lock(self) -> bool:
        """Whether the bucket has object lock, by which a version cannot be removed for a time."""
        try:
            with self._asking("object lock was not told"):
                told = self._client.get_object_lock_configuration(Bucket=self.name)
        except S3Error:
            return False
        held = told.get("ObjectLockConfiguration", {})
        return bool(held.get("ObjectLockEnabled") == "Enabled")

    def forget(self, prefix: str, before: datetime.datetime) -> int:
        """Remove for good what was overwritten or removed before then, as far as S3 lets us."""
        with self._asking(f"the versions below {prefix} were not listed"):
            pages = self._client.get_paginator("list_object_versions")
            wanted = _superseded(pages.paginate(Bucket=self.name, Prefix=prefix), before)
        gone = 0
        for start in range(0, len(wanted), _DELETE_AT_ONCE):
            some = wanted[start : start + _DELETE_AT_ONCE]
            with self._asking(f"{len(some)} versions were not removed"):
                done = self._client.delete_objects(
                    Bucket=self.name, Delete={"Objects": some, "Quiet": True}
                )
            # Those under object lock stay until their time has come.
            gone += len(some) - len(done.get("Errors", []))
        return gone

    def abandon(self, prefix: str, before: datetime.datetime) -> int:
        """Take back the parts of uploads that began before then and never ended."""
        taken = 0
        with self._asking(f"unfinished uploads below {prefix} were not removed"):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.name, Prefix=prefix):
                for raw in page.get("Uploads", []):
                    if raw["Initiated"] < before:
                        self._client.abort_multipart_upload(
                            Bucket=self.name, Key=raw["Key"], UploadId=raw["UploadId"]
                        )
                        taken += 1
        return taken


def _object(raw: dict[str, Any]) -> Object:
    return Object(str(raw["Key"]), int(raw["Size"]), raw["LastModified"])


def _superseded(pages: Iterable[dict[str, Any]], before: datetime.datetime) -> list[dict[str, str]]:
    """Versions that are not the latest, and delete markers, of before then.

    A version's own time is when it was written, not when it was superseded: WAL of a month ago that
    was removed today is as old as that. So only what a marker or a newer version of before then
    lies over is taken. Which is the latest is S3's word, not the times': versitygw gives a version
    that lies below another one the time when that came, or a second later.
    """
    found = []
    for key, versions in _by_key(pages):
        versions.sort(key=lambda v: (v["IsLatest"], v["LastModified"]), reverse=True)
        over: datetime.datetime | None = None
        for raw in versions:
            superseded = over is not None and over < before and not raw["IsLatest"]
            # A marker with nothing below it any more says nothing.
            alone = raw["Marker"] and len(versions) == 1 and raw["LastModified"] < before
            if superseded or alone:
                found.append({"Key": key, "VersionId": str(raw["VersionId"])})
            over = raw["LastModified"]
    return found


def _by_key(pages: Iterable[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each key with all of its versions and delete markers: a page may end in the middle of them,
    and a marker that looks alone would be taken, and what it lies over would come back. versitygw
    repeats some of the page before; MinIO's marker of the next page is more than a key."""
    entries: dict[str, dict[str, dict[str, Any]]] = {}
    for page in itertools.chain(pages, [{}]):
        lists = {kind: page.get(kind, ()) for kind in ("Versions", "DeleteMarkers")}
        for kind, raws in lists.items():
            for raw in raws:
                entry = {**raw, "Marker": kind == "DeleteMarkers"}
                entries.setdefault(raw["Key"], {})[raw["VersionId"]] = entry
        ends = {page.get("NextKeyMarker"), *(raws[-1]["Key"] for raws in lists.values() if raws)}
        goes_on = {key: entries.pop(key) for key in ends & entries.keys()}
        yield from ((key, list(versions.values())) for key, versions in entries.items())
        entries = goes_on
