"""The secrets of a stack, once their values are known: what rendering needs, and no more.

Infrastructure roles log in by client certificate (its CN is the role's name), so only the roles
that people and applications use have passwords.
"""

from __future__ import annotations

import base64
import secrets as random
from collections.abc import Mapping
from dataclasses import dataclass

from elsapg.definition import topology as t
from elsapg.settings import Settings

PASSWORD_ROLES = (
    "elsa_app",
    "elsa_worker",
    "elsa_readonly",
    "elsa_host",
    "elsa_admin",
    "elsa_migrator",
    "monitoring",
)
# CN of a client certificate = the database role that it logs in, or the caller it names.
REPLICATOR, REWIND, AUTH, BACKUP, SUPERUSER = (
    "replicator",
    "rewind",
    "pgbouncer_auth",
    "backup",
    "postgres",
)
# The servers' key pairs on kubernetes.
NODES_PAIR, POOLERS_PAIR = "pg", "pgbouncer"
CLIENTS = (REPLICATOR, REWIND, AUTH, BACKUP, SUPERUSER)


# Random bytes of what is generated.
PASSWORD_BYTES, CIPHER_BYTES = 24, 48


def new_secret(entropy: int) -> str:
    """A secret of so many random bytes, in characters that stand anywhere."""
    return random.token_urlsafe(entropy)


def new_encryption_key() -> str:
    """A key of 32 random bytes, base64."""
    return base64.b64encode(random.token_bytes(32)).decode()


def cipher_name(key_id: str) -> str:
    """What a repository's passphrase is called in the state, in a store, in the environment."""
    return "repository-cipher" if key_id == "k1" else f"repository-cipher-{key_id}"


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its key, PEM."""

    certificate: str
    private_key: str


@dataclass(frozen=True)
class Source:
    """Another stack's repository, to recover from: where it is, and what opens it. Read only.

    Without keys (both empty) the pods' own identity opens the bucket.
    """

    host: str
    port: int
    uri_style: str
    bucket: str
    region: str
    prefix: str
    access_key: str
    secret_key: str
    cipher: str
    ca: str


@dataclass(frozen=True)
class Recovery:
    """A stack that comes out of a repository: its own, or that of stack `source_stack`.

    `source`: what opens that one; None on kubernetes, where it comes by a Secret of its own.
    """

    to: str
    timeline: int | None = None
    backup: str | None = None
    source: Source | None = None
    source_stack: str | None = None


@dataclass(frozen=True)
class Secrets:
    """Everything that must not stand in the repository, argv, environment or clear state."""

    ca: str
    key_pairs: Mapping[str, KeyPair]
    passwords: Mapping[str, str]
    s3_access_key: str
    s3_secret_key: str
    repository_cipher: str
    recovery: Recovery | None = None
    """Only until the stack has its data."""


def key_pair_of(unit: str, settings: Settings) -> str:
    """The name of the key pair that a unit serves with.

    On kubernetes all units of a kind are made from one template, and share one.
    """
    if settings.target != "kubernetes":
        return unit
    return NODES_PAIR if unit in t.node_names(settings) else POOLERS_PAIR


def is_client_too(pair: str, settings: Settings) -> bool:
    """Whether a server's key pair is a client's as well: nodes are clients of etcd and of each
    other's REST API (and of the poolers' gates), etcd's members of each other."""
    return pair in (NODES_PAIR, *t.node_names(settings), *t.etcd_names(settings))


def certificate_names(
    settings: Settings, namespace: str | None = None, *, s3_from_outside: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Each certificate's DNS names or addresses; a client certificate has none but its CN.

    `namespace`: the stack's, on kubernetes. `s3_from_outside`: by which name a clone reaches the S3
    of the stack that it is made of, on docker.
    """
    if settings.target == "kubernetes":
        return _kubernetes_names(settings, namespace or "")
    address = settings.docker.bind_address
    local = ("localhost", "127.0.0.1", *({address} - {"127.0.0.1", "0.0.0.0"}))
    names: dict[str, tuple[str, ...]] = dict.fromkeys(CLIENTS, ())
    for node in t.node_names(settings):
        names[node] = (node, t.agent_name(node), t.PRIMARY_HOST, t.REPLICA_HOST, *local)
    for name in t.etcd_names(settings):
        names[name] = (name, *local)
    for name in t.pooler_names(settings):
        names[name] = (name, "pgbouncer", *local)
    names["s3"] = (t.S3_HOST, *local, *((s3_from_outside,) if s3_from_outside else ()))
    return names


# What pools asked for until November 2026; one that is not replaced yet still does. To be removed
# with the Service primary's port for it (targets/kubernetes/nodes.py) in June 2027.
_OF_OLD_POOLS = f"{t.REPLICA_HOST},{t.PRIMARY_HOST}"


def _kubernetes_names(settings: Settings, namespace: str) -> dict[str, tuple[str, ...]]:
    nodes = t.node_names(settings)
    local = ("localhost", "127.0.0.1")
    # Nodes are spoken to from within the namespace alone, pools from anywhere.
    pool = POOLERS_PAIR
    outside = (f"{pool}.{namespace}", f"{pool}.{namespace}.svc")
    far = f"{pool}.{namespace}.svc.{settings.kubernetes.cluster_domain}"
    further = settings.kubernetes.pool_names
    return {
        **dict.fromkeys(CLIENTS, ()),
        NODES_PAIR: (
            *(NODES_PAIR, *nodes, *map(t.agent_name, nodes)),
            *(t.PRIMARY_HOST, t.REPLICA_HOST, _OF_OLD_POOLS, *local),
        ),
        POOLERS_PAIR: (pool, *((*outside, far) if namespace else ()), *further, *local),
    }
