"""What a clone on kubernetes needs of the stack that it is made of: the way into that one's
repository, to read, and its keys of encrypted JSON.

Both are read from the Secrets in the source's namespace, whoever made those; none of it is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elsapg import stackfile
from elsapg.definition import topology as t
from elsapg.definition.secrets import Source
from elsapg.errors import NotDeployedError, UsageError
from elsapg.services.kept_secrets import Cluster, kubectl, read_secrets, repository_of
from elsapg.settings import Settings
from elsapg.targets.kubernetes.objects import Place
from elsapg.targets.kubernetes.secret_objects import ENCRYPTION_KEYS, REPOSITORY


@dataclass(frozen=True)
class Opened:
    """Never shown whole. `keys`: of encrypted JSON, by their ids; `settings`: the source's."""

    stack: str
    settings: Settings
    source: Source
    keys: Mapping[str, str]

    def s3_keys(self, settings: Settings) -> dict[str, str]:
        """S3's keys, where they open the clone's bucket as well: s3_access_key, s3_secret_key."""
        theirs, own = self.settings.archive, settings.archive
        same = (theirs.endpoint, theirs.bucket) == (own.endpoint, own.bucket)
        if not same or not self.source.access_key or own.credentials != "keys":
            return {}
        return {"s3_access_key": self.source.access_key, "s3_secret_key": self.source.secret_key}


def open_source(root: Path, clone: str, stack: str, cluster: Cluster | None = None) -> Opened:
    """Read it, for stack `clone`. Raises UsageError for a stack that cannot be the source, and
    NotDeployedError if its Secrets are not there.
    """
    if stack == clone:
        raise UsageError(
            f"recovery.source of stack {clone!r} is {stack!r} itself: leave it out, and the stack "
            "comes out of its own archive"
        )
    settings = stackfile.read(root, stack)
    if settings.target != "kubernetes":
        raise UsageError(
            f"recovery.source of stack {clone!r} is {stack!r}, which is for {settings.target}: on "
            "kubernetes a stack is made of the backups of one on kubernetes"
        )
    place = Place(stack, settings, {})
    found = read_secrets(cluster or kubectl(place), (REPOSITORY, ENCRYPTION_KEYS))
    for name in (REPOSITORY, ENCRYPTION_KEYS):
        if name not in found:
            raise NotDeployedError(
                f"namespace {place.namespace} has no Secret {name}, so nothing opens the backups "
                f"of stack {stack!r}: see KUBECONFIG and its kubernetes.context; if {clone!r} has "
                "its data already, take elsapg:recovery out of its file"
            )
    return Opened(
        stack, settings, _source(settings, repository_of(found[REPOSITORY])),
        found[ENCRYPTION_KEYS].data,
    )  # fmt: skip


def _source(settings: Settings, options: Mapping[str, str]) -> Source:
    """By the source's own settings, and the options of its pods' secrets.conf."""
    archive = settings.archive
    host, port = t.s3_address(settings)
    if "repo1-cipher-pass" not in options:
        raise UsageError(
            f"Secret {REPOSITORY} of the source has no repo1-cipher-pass in its secrets.conf, so "
            "its backups cannot be read: put it right"
        )
    with_keys = archive.credentials == "keys"
    return Source(
        host=host,
        port=port,
        uri_style=archive.uri_style,
        bucket=archive.bucket,
        region=archive.region,
        prefix=archive.prefix,
        access_key=options.get("repo1-s3-key", "") if with_keys else "",
        secret_key=options.get("repo1-s3-key-secret", "") if with_keys else "",
        cipher=options["repo1-cipher-pass"],
        ca=archive.ca or "",
    )
