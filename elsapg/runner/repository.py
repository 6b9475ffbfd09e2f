"""What pgBackRest is told about its repository: the one source for whoever else speaks to that S3.

Read from pgBackRest's own files, so that there is no second copy of a key.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from elsapg.errors import MissingError

CONFIG = Path("/etc/elsapg/pgbackrest.conf")
INCLUDES = Path("/etc/elsapg/pgbackrest.d")


@dataclass(frozen=True)
class Repository:
    """One repository. `access_key` and `secret_key` are None where the machine's own role
    counts; `cipher` is the passphrase of everything in it.
    """

    bucket: str
    prefix: str
    region: str
    endpoint: str
    path_style: bool
    ca_file: str | None
    access_key: str | None = field(repr=False)
    secret_key: str | None = field(repr=False)
    cipher: str = field(repr=False)

    @property
    def name(self) -> str:
        """Where it is, for messages and for the record: no secret."""
        return f"{self.bucket}{self.prefix}"


def options(config: Path | None = None, includes: Path | None = None) -> Mapping[str, str]:
    """Everything that pgBackRest is told for all of its commands; secrets among it."""
    config = config or Path(os.environ.get("PGBACKREST_CONFIG", CONFIG))
    includes = includes or Path(os.environ.get("PGBACKREST_CONFIG_INCLUDE_PATH", INCLUDES))
    found = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    found.read([config, *sorted(includes.glob("*.conf"))], encoding="utf-8")
    return dict(found["global"]) if found.has_section("global") else {}


def read(
    config: Path | None = None, includes: Path | None = None, *, number: int = 1
) -> Repository:
    """A repository of pgBackRest's files. Raises MissingError for what they lack."""
    config = config or Path(os.environ.get("PGBACKREST_CONFIG", CONFIG))
    told = options(config, includes)

    def said(key: str) -> str | None:
        return told.get(f"repo{number}-{key}")

    def need(key: str) -> str:
        value = said(key)
        if not value:
            raise MissingError(
                f"{config} says nothing of repo{number}-{key}: `elsapg verify --only files` says "
                "what to do about that"
            )
        return value

    host, port = need("s3-endpoint"), said("storage-port")
    if port and ":" not in host:
        host = f"{host}:{port}"
    return Repository(
        bucket=need("s3-bucket"),
        prefix=need("path"),
        region=need("s3-region"),
        endpoint=f"https://{host}",
        path_style=said("s3-uri-style") == "path",
        ca_file=said("storage-ca-file"),
        access_key=said("s3-key"),
        secret_key=said("s3-key-secret"),
        cipher=need("cipher-pass"),
    )
