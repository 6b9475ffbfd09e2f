"""The Secrets of a stack on kubernetes, made and read straight in the cluster.

It is how a stack that is rendered (GitOps) gets its secrets where there is no store for them:
what is missing is generated here and goes to the API server by standard input. A value that is
there is never overwritten, so running it again is safe; certificates are renewed in their window.
"""

from __future__ import annotations

import base64
import configparser
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
from elsapg.errors import NotDeployedError, UsageError
from elsapg.settings import Settings
from elsapg.targets.kubernetes.foundation import namespace_manifest
from elsapg.targets.kubernetes.kubectl import Kubectl
from elsapg.targets.kubernetes.objects import Place
from elsapg.targets.kubernetes.secret_objects import (
    CA_KEY,
    ENCRYPTION_KEYS,
    REPOSITORY,
    ROLES,
    key_pair_data,
    key_pair_names,
    made_by_hand,
    secret_manifest,
    value_secrets,
)

Data = dict[str, str]
# Asks a person for a secret by its name; None when nobody is there.
Ask = Callable[[str], str]


class Cluster(Protocol):
    """What is needed of kubectl: run it, with text for its standard input; its output."""

    def __call__(self, *arguments: str, stdin: str | None = None) -> str: ...


def kubectl(place: Place) -> Cluster:
    """The stack's cluster and namespace."""
    return Kubectl(place.stack, place.namespace, place.settings.kubernetes.context).run


@dataclass(frozen=True)
class Kept:
    """A Secret as the cluster has it."""

    data: Data
    version: str
    raw: Mapping[str, Any]


@dataclass
class Applied:
    """Names of the Secrets that were made, completed or renewed, and left as they were."""

    made: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def read_secrets(cluster: Cluster, names: tuple[str, ...]) -> dict[str, Kept]:
    """Those of `names` that are in the namespace (which may be missing as well)."""
    text = cluster("get", "secret", *names, "--ignore-not-found", "-o", "json")
    document = json.loads(text) if text.strip() else {"items": []}
    items = document.get("items", [document])
    return {
        item["metadata"]["name"]: Kept(
            {k: base64.b64decode(v).decode() for k, v in (item.get("data") or {}).items()},
            item["metadata"].get("resourceVersion", ""),
            item,
        )
        for item in items
    }


class Writer:
    """Makes what is missing, and changes what has to be, of one stack's Secrets."""

    def __init__(
        self, place: Place, cluster: Cluster, found: dict[str, Kept], ask: Ask | None
    ) -> None:
        self._place = place
        self._cluster = cluster
        self._found = found
        self._ask = ask
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
        passwords |= _json(self._found.get(ROLES), "roles.json")
        repository = _repository(self._found.get(REPOSITORY))
        with_keys = settings.archive.credentials == "keys"
        secrets = Secrets(
            ca="",
            key_pairs={},
            passwords=passwords,
            s3_access_key=self._given("s3-access-key", repository.get("repo1-s3-key"), with_keys),
            s3_secret_key=self._given(
                "s3-secret-key", repository.get("repo1-s3-key-secret"), with_keys
            ),
            repository_cipher=repository.get("repo1-cipher-pass") or self._cipher(),
        )
        keys = {name: new_encryption_key() for name in settings.encryption.key_ids}
        old = self._found.get(ENCRYPTION_KEYS)
        # A key that the stack names no longer may still be needed to read old rows.
        keys |= old.data if old else {}
        for name, data in value_secrets(settings, secrets, keys).items():
            self.put(name, data)

    def _given(self, name: str, old: str | None, wanted: bool) -> str:
        if not wanted or old:
            return old or ""
        value = _environment(name) or (self._ask(name) if self._ask else "")
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
        claim = f"data-{t.node_names(self._place.settings)[0]}"
        there = self._cluster(
            "get", "persistentvolumeclaim", claim, "--ignore-not-found", "-o", "name"
        )
        if there.strip():
            raise UsageError(
                f"Secret {REPOSITORY} is gone from {self._place.namespace}, but the data of the "
                "stack is there, and a new cipher would not read its old backups: put the Secret "
                f"back, or the cipher into {_variable('repository-cipher')}, and run this again"
            )
        return new_secret(CIPHER_BYTES)

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


def apply(
    root: Path, stack: str, ask: Ask | None = None, cluster: Cluster | None = None
) -> Applied:
    """Make the Secrets that the stack lacks; renew certificates that are due."""
    settings = stackfile.read(root, stack)
    if settings.target != "kubernetes":
        raise UsageError(
            f"stack {stack!r} is for {settings.target} (elsapg:target), where `elsapg up` makes "
            "the secrets by itself"
        )
    place = Place(stack, settings, {})
    names = made_by_hand(place)
    if not names:
        return Applied()
    run = cluster or kubectl(place)
    found = read_secrets(run, (*names, CA_KEY))
    if not run("get", "namespace", place.namespace, "--ignore-not-found", "-o", "name").strip():
        namespace = json.dumps(namespace_manifest(place))
        run("apply", "--server-side", "-f", "-", stdin=namespace)
    writer = Writer(place, run, found, ask)
    if ROLES in names:
        writer.values()
    if not settings.kubernetes.cert_manager:
        writer.certificates()
    return writer.applied


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
            f"namespace {namespace} has no Secret {missing[0]}: `elsapg secrets apply --stack "
            f"{stack}` makes it, unless something else in your stack's file is to"
        )
    return {
        "passwords": _json(found[ROLES], "roles.json"),
        "encryption_keys": {
            "current": settings.encryption.key_ids[-1],
            "keys": found[ENCRYPTION_KEYS].data,
        },
        "ca": found[pool].data["ca.crt"],
        "pools": [{"host": f"{POOLERS_PAIR}.{namespace}.svc", "port": t.POOL_PORT}],
    }


def _json(kept: Kept | None, key: str) -> dict[str, str]:
    if kept is None:
        return {}
    try:
        found = json.loads(kept.data[key])
        return {str(name): str(value) for name, value in found.items()}
    except (KeyError, ValueError, AttributeError):
        name = kept.raw["metadata"]["name"]
        raise UsageError(
            f"Secret {name} has no {key} that is JSON: put it right, or delete the Secret"
        ) from None


def _repository(kept: Kept | None) -> dict[str, str]:
    """The options in the repository's file."""
    if kept is None:
        return {}
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    try:
        parser.read_string(kept.data["secrets.conf"])
        return dict(parser["global"])
    except (KeyError, configparser.Error):
        raise UsageError(
            f"Secret {REPOSITORY} has no secrets.conf with a section [global]: put it right"
        ) from None


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
