"""The Secrets of a stack on kubernetes, made and read straight in the cluster.

It is how a stack that is rendered (GitOps) gets its secrets where there is no store for them:
what is missing is generated here and goes to the API server by standard input. A value that is
there is never overwritten, so running it again is safe (but S3's keys, if that is asked for);
certificates are renewed in their window.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elsapg import pki, stackfile
from elsapg.definition import topology as t
from elsapg.definition.files import tls_secret
from elsapg.definition.secrets import (
    CIPHER_BYTES,
    PASSWORD_BYTES,
    PASSWORD_ROLES,
    POOLERS_PAIR,
    KeyPair,
    Secrets,
    is_client_too,
    new_encryption_key,
    new_secret,
)
from elsapg.errors import ElsapgError, NotDeployedError, UsageError
from elsapg.services.kept_secrets import (
    Cluster,
    Data,
    Kept,
    json_of,
    kubectl,
    read_secrets,
    repository_of,
)
from elsapg.services.source import Opened, open_source
from elsapg.settings import Settings
from elsapg.targets.kubernetes.foundation import namespace_manifest
from elsapg.targets.kubernetes.objects import Place
from elsapg.targets.kubernetes.secret_objects import (
    CA_KEY,
    ENCRYPTION_KEYS,
    REPOSITORY,
    ROLES,
    SOURCE,
    key_pair_data,
    key_pair_names,
    made_by_hand,
    secret_manifest,
    source_data,
    store_keys,
    value_secrets,
)

# Asks a person for a secret by its name; None when nobody is there.
Ask = Callable[[str], str]


@dataclass
class Applied:
    """Names of the Secrets that were made, completed or renewed, left as they were, and removed."""

    made: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


class Writer:
    """Makes what is missing, and changes what has to be, of one stack's Secrets.

    `opened`: of the stack that this one is made of, while it is.
    """

    def __init__(
        self,
        place: Place,
        cluster: Cluster,
        found: dict[str, Kept],
        ask: Ask | None,
        opened: Opened | None = None,
        new_s3_keys: bool = False,
    ) -> None:
        self._new_s3_keys = new_s3_keys
        self._place = place
        self._cluster = cluster
        self._found = found
        self._ask = ask
        self._opened = opened
        self.applied = Applied()

    def put(self, name: str, data: Data) -> None:
        """Make the Secret hold `data`: created, replaced, or left alone if it does already."""
        old = self._found.get(name)
        if old is not None and old.data == data:
            self.applied.kept.append(name)
            return
        manifest = secret_manifest(self._place, name, data)
        if old is None:
            # `create` and not `apply`: what somebody else has made meanwhile must not be lost.
            self._cluster("create", "-f", "-", stdin=json.dumps(manifest))
            self.applied.made.append(name)
            return
        manifest["metadata"]["resourceVersion"] = old.version
        self._cluster("replace", "-f", "-", stdin=json.dumps(manifest))
        self.applied.changed.append(name)

    def values(self) -> None:
        """Passwords, what opens the repository, encryption keys."""
        settings = self._place.settings
        passwords = {name: new_secret(PASSWORD_BYTES) for name in PASSWORD_ROLES}
        passwords |= json_of(self._found.get(ROLES), "roles.json")
        repository = repository_of(self._found.get(REPOSITORY))
        with_keys = settings.archive.credentials == "keys"
        theirs = self._opened.s3_keys(settings) if self._opened else {}
        secrets = Secrets(
            ca="",
            key_pairs={},
            passwords=passwords,
            s3_access_key=self._given(
                "s3-access-key",
                repository.get("repo1-s3-key"),
                with_keys,
                theirs.get("s3_access_key"),
            ),
            s3_secret_key=self._given(
                "s3-secret-key",
                repository.get("repo1-s3-key-secret"),
                with_keys,
                theirs.get("s3_secret_key"),
            ),
            repository_cipher=repository.get("repo1-cipher-pass") or self._cipher(),
        )
        old = self._found.get(ENCRYPTION_KEYS)
        if old is None and not (self._opened and self._opened.keys):
            self._nothing_to_open(
                ENCRYPTION_KEYS,
                "other keys would not open its encrypted JSON: put the Secret back (if nothing was "
                f"ever encrypted, `kubectl -n {self._place.namespace} create secret generic "
                f"{ENCRYPTION_KEYS}` lets new ones be made)",
            )
        keys = {name: new_encryption_key() for name in settings.encryption.key_ids}
        # Without the source's a clone could not read its rows.
        keys |= self._opened.keys if self._opened else {}
        # A key that the stack names no longer may still be needed to read old rows.
        keys |= old.data if old else {}
        for name, data in value_secrets(settings, secrets, keys).items():
            self.put(name, data)

    def source(self) -> None:
        """What opens the repository of the stack that this one is made of; after `values`, so that
        where it is there its keys of encrypted JSON are, too. Removed when nothing asks for it."""
        if self._opened is not None:
            self.put(SOURCE, source_data(self._place.settings, self._opened.source))
        elif SOURCE not in self._found:
            return
        elif _source_of(self._place.settings) is not None:
            self.applied.kept.append(SOURCE)
        else:
            self._cluster("delete", "secret", SOURCE, "--ignore-not-found")
            self.applied.removed.append(SOURCE)

    def _given(self, name: str, old: str | None, wanted: bool, theirs: str | None = None) -> str:
        if not wanted or (old and not self._new_s3_keys):
            return old or ""
        value = _environment(name) or theirs or (self._ask(name) if self._ask else "")
        if not value:
            raise UsageError(
                f"nobody has said what the {name} is (archive.credentials is 'keys'): put it into "
                f"the environment variable {_variable(name)}, or a file and its path into "
                f"{_variable(name)}_FILE"
            )
        return value

    def _cipher(self) -> str:
        """A lost cipher cannot be made again: what it has encrypted would be lost with it."""
        known = _environment("repository-cipher")
        if known:
            return known
        self._nothing_to_open(
            REPOSITORY,
            "a new cipher would not read its old backups: put the Secret back, or the cipher into "
            f"{_variable('repository-cipher')}",
        )
        return new_secret(CIPHER_BYTES)

    def _nothing_to_open(self, secret: str, why: str) -> None:
        """Raise UsageError where a Secret that opens data is gone, and the data is there."""
        claim = f"data-{t.node_names(self._place.settings)[0]}"
        there = self._cluster(
            "get", "persistentvolumeclaim", claim, "--ignore-not-found", "-o", "name"
        )
        if there.strip():
            raise UsageError(
                f"Secret {secret} is gone from {self._place.namespace}, but the data of the stack "
                f"is there, and {why}, and run this again"
            )

    def certificates(self) -> None:
        """The CA and what it signs: made, or renewed in their window."""
        settings, names = self._place.settings, key_pair_names(self._place)
        present = [tls_secret(pair) for pair in names if tls_secret(pair) in self._found]
        if CA_KEY not in self._found and present:
            if len(present) == len(names):
                # Pulumi's, or somebody else's: who made them renews them.
                self.applied.kept += present
                return
            raise UsageError(
                f"Secret {present[0]} is there, but its CA's key (Secret {CA_KEY}) is not, and "
                f"others are missing: `elsapg up --stack {self._place.stack}` makes them if it "
                f"made this one; else delete {', '.join(present)}, and all are made anew"
            )
        ca, ca_key = self._authority()
        for pair, own in names.items():
            old = self._found.get(tls_secret(pair))
            data = dict(old.data) if old else {}
            client = is_client_too(pair, settings)
            if not _holds(data, pair, own, client, ca, settings.tls.renew_before_days):
                made = pki.make_certificate(pair, own, settings.tls.valid_days, ca, ca_key, client)
                data = key_pair_data(KeyPair(made["certificate"], made["private_key"]), ca)
            self.put(tls_secret(pair), data | {"ca.crt": ca})

    def _authority(self) -> tuple[str, str]:
        tls = self._place.settings.tls
        old = self._found.get(CA_KEY)
        name = f"elsapg {self._place.stack}"
        if old is None:
            made = pki.make_ca(name, tls.ca_valid_days)
        elif pki.describe(old.data["tls.crt"]).within_window(tls.renew_before_days):
            made = pki.make_ca(name, tls.ca_valid_days, old.data["tls.key"])
        else:
            made = {"certificate": old.data["tls.crt"], "private_key": old.data["tls.key"]}
        # First of all: without it nothing that it has signed could ever be renewed.
        self.put(CA_KEY, {"tls.crt": made["certificate"], "tls.key": made["private_key"]})
        return made["certificate"], made["private_key"]


def _holds(
    data: Data, pair: str, names: tuple[str, ...], client: bool, ca: str, window: float
) -> bool:
    """Whether a key pair is what it should be, for long enough."""
    if not data.get("tls.crt") or not data.get("tls.key"):
        return False
    try:
        found = pki.describe(data["tls.crt"])
    except ValueError:
        return False
    return (
        found.common_name == pair
        and set(found.names) == set(names)
        and found.client == (client or not names)
        and pki.is_signed_by(data["tls.crt"], ca)
        and not found.within_window(window)
    )


def _source_of(settings: Settings) -> str | None:
    return settings.recovery.source if settings.recovery else None


def _opened(
    place: Place, root: Path, found: dict[str, Kept], theirs: Cluster | None
) -> Opened | None:
    """Of the stack that this one is made of, if it is. Raises UsageError, NotDeployedError."""
    stack = _source_of(place.settings)
    if stack is None:
        return None
    try:
        opened = open_source(root, place.stack, stack, theirs)
    except ElsapgError:
        if SOURCE not in found:
            raise
        # All was taken over when that was made; the source may be gone, and certificates are due.
        return None
    kept = found[ENCRYPTION_KEYS].data if ENCRYPTION_KEYS in found else {}
    other = sorted(name for name, key in opened.keys.items() if kept.get(name, key) != key)
    if other:
        raise UsageError(
            f"Secret {ENCRYPTION_KEYS} of {place.namespace} has another key {other[0]!r} than "
            f"stack {stack!r}, whose rows it does not read: {_way_out(place, opened)}; if "
            f"{place.stack!r} has its data already, take elsapg:recovery out of its file"
        )
    return opened


def _way_out(place: Place, opened: Opened) -> str:
    if place.settings.kubernetes.secrets == "external":
        pairs = (f"{theirs} to {own}" for theirs, own in keys_to_copy(place, opened.settings))
        return f"copy in the store {', '.join(pairs)}"
    return "delete that Secret, if nothing was encrypted with it yet, and run this again"


def keys_to_copy(place: Place, source: Settings) -> list[tuple[str, str]]:
    """Of what a clone's store must hold, what is the source's as well: (there, here)."""
    stack = _source_of(place.settings)
    assert stack is not None
    there = store_keys(Place(stack, source, {}))[ENCRYPTION_KEYS]
    here = store_keys(place)[ENCRYPTION_KEYS]
    return [(there[name], here[name]) for name in there if name in here]


def apply(
    root: Path,
    stack: str,
    ask: Ask | None = None,
    cluster: Cluster | None = None,
    theirs: Cluster | None = None,
    new_s3_keys: bool = False,
) -> Applied:
    """Make the Secrets that the stack lacks; renew certificates that are due.

    `theirs`: the cluster and namespace of the stack that this one is made of, if it is.
    `new_s3_keys`: S3's keys are asked for anew, and replace those that are there.
    """
    settings = stackfile.read(root, stack)
    if settings.target != "kubernetes":
        raise UsageError(
            f"stack {stack!r} is for {settings.target} (elsapg:target), where `elsapg up` makes "
            "the secrets by itself"
        )
    if new_s3_keys:
        _may_replace_s3_keys(stack, settings)
    place = Place(stack, settings, {})
    names = made_by_hand(place)
    run = cluster or kubectl(place)
    found = read_secrets(run, (*names, CA_KEY, SOURCE, ENCRYPTION_KEYS))
    opened = _opened(place, root, found, theirs)
    if names:
        _make_namespace(place, run)
    writer = Writer(place, run, found, ask, opened, new_s3_keys)
    if ROLES in names:
        writer.values()
    writer.source()
    if not settings.kubernetes.cert_manager:
        writer.certificates()
    return writer.applied


def _may_replace_s3_keys(stack: str, settings: Settings) -> None:
    if settings.archive.credentials != "keys":
        raise UsageError(
            f"--new-s3-keys: stack {stack!r} has none (archive.credentials is "
            f"{settings.archive.credentials!r}): its ServiceAccounts' roles let it in"
        )
    instead = {
        "pulumi": f"`elsapg up --stack {stack}` with ELSAPG_S3_ACCESS_KEY and ELSAPG_S3_SECRET_KEY",
        "external": "put them into the store that the ExternalSecret reads",
    }.get(settings.kubernetes.secrets)
    if instead:
        raise UsageError(
            f"--new-s3-keys: this command does not make the S3 keys of stack {stack!r} "
            f"(kubernetes.secrets is {settings.kubernetes.secrets!r}): {instead}"
        )


def _make_namespace(place: Place, run: Cluster) -> None:
    there = run("get", "namespace", place.namespace, "--ignore-not-found", "-o", "name")
    if not there.strip():
        manifest = json.dumps(namespace_manifest(place))
        run("apply", "--server-side", "-f", "-", stdin=manifest)


def outputs_from_cluster(
    stack: str, settings: Settings, cluster: Cluster | None = None
) -> dict[str, Any]:
    """What `elsapg up` would give as outputs: passwords, encryption_keys, ca, pools.

    Never print it whole. Raises NotDeployedError when a Secret is not there.
    """
    place = Place(stack, settings, {})
    namespace = place.namespace
    pool = tls_secret(POOLERS_PAIR)
    wanted = (ROLES, ENCRYPTION_KEYS, pool)
    found = read_secrets(cluster or kubectl(place), wanted)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise NotDeployedError(
            f"namespace {namespace} has no Secret {missing[0]}: if it was there, put it "
            f"back from where you keep it; else `elsapg secrets apply --stack {stack}` makes it, "
            "unless something else in your stack's file is to"
        )
    return {
        "passwords": json_of(found[ROLES], "roles.json"),
        "encryption_keys": {
            "current": settings.encryption.key_ids[-1],
            "keys": found[ENCRYPTION_KEYS].data,
        },
        "ca": found[pool].data["ca.crt"],
        "pools": [{"host": f"{POOLERS_PAIR}.{namespace}.svc", "port": t.POOL_PORT}],
    }


def _variable(name: str) -> str:
    return f"ELSAPG_{name.upper().replace('-', '_')}"


def _environment(name: str) -> str:
    """A value from the environment, or from the file that it names."""
    value = os.environ.get(_variable(name), "")
    path = os.environ.get(f"{_variable(name)}_FILE", "")
    if value or not path:
        return value
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{_variable(name)}_FILE = {path}: {error}") from None
