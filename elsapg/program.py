"""The Pulumi program: settings -> secrets and certificates -> definition -> target."""

from __future__ import annotations

import base64
import secrets as random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi

from elsapg.definition import topology as t
from elsapg.definition.secrets import (
    PASSWORD_ROLES,
    KeyPair,
    Recovery,
    Secrets,
    certificate_names,
)
from elsapg.errors import UsageError
from elsapg.pki import Certificate, CertificateAuthority
from elsapg.settings import Settings
from elsapg.targets.docker import daemon
from elsapg.targets.docker.place import place as place_on_docker


@dataclass(frozen=True)
class Escrow:
    """What was kept outside for the day on which all else is gone. Never shown whole."""

    s3_access_key: str | None = None
    s3_secret_key: str | None = None
    repository_cipher: str | None = None
    encryption_keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rescue:
    """How a stack comes out of a repository. `escrow`: its own secrets, where no state has them."""

    recovery: Recovery
    escrow: Escrow | None = None


def program(stack: str, settings: Settings, _root: Path, rescue: Rescue | None = None) -> None:
    """Register every resource of the stack. Runs inside a Pulumi program.

    `rescue`: for a stack that comes out of a repository, while it does.
    """
    if not settings.database.provisioned:
        # To register nothing would be to ask for the removal of all that an earlier run made.
        raise UsageError(
            f"stack {stack!r} uses {settings.database.provider} (elsapg:database): nothing is "
            f"there to deploy; `elsapg appsettings --stack {stack}` prints Elsa's settings"
        )
    if settings.target != "docker":
        raise UsageError(
            f"target {settings.target!r} is not there yet: set elsapg:target to docker"
        )
    if not pulumi.runtime.is_dry_run():
        daemon.check()
    keep = pulumi.ResourceOptions(protect=settings.protect)
    kept = rescue.escrow if rescue and rescue.escrow else Escrow()
    stashes = {name: _generated(f"password-{name}", 24, keep) for name in PASSWORD_ROLES}
    access_key = _generated("s3-access-key", 15, keep, kept.s3_access_key)
    secret_key = _generated("s3-secret-key", 30, keep, kept.s3_secret_key)
    cipher = _generated("repository-cipher", 48, keep, kept.repository_cipher)
    # For applications, by way of `elsapg keys show`: no unit of the stack ever gets them.
    keys = {
        name: _stashed(
            f"encryption-key-{name}",
            base64.b64encode(random.token_bytes(32)).decode(),
            keep,
            kept.encryption_keys.get(name),
        )
        for name in settings.encryption.key_ids
    }
    authority = CertificateAuthority(
        "ca",
        common_name=f"elsapg {stack}",
        valid_days=settings.tls.ca_valid_days,
        renew_before_days=settings.tls.renew_before_days,
        opts=keep,
    )
    # Nodes are clients of etcd and of each other's REST API; etcd's members of each other.
    both = (*t.node_names(settings), *t.etcd_names(settings))
    pairs = {
        name: Certificate(
            f"certificate-{name}",
            common_name=name,
            names=names,
            client=name in both,
            valid_days=settings.tls.valid_days,
            renew_before_days=settings.tls.renew_before_days,
            ca=authority,
        )
        for name, names in certificate_names(
            settings, s3_from_outside=daemon.physical_name(stack, t.S3_HOST)
        ).items()
    }
    # Secret as a whole: its parts are.
    known = pulumi.Output.all(
        ca=authority.certificate,
        passwords=stashes,
        pairs={n: [c.certificate, c.private_key] for n, c in pairs.items()},
        s3=[access_key, secret_key],
        cipher=cipher,
    ).apply(lambda values: _secrets(values, rescue.recovery if rescue else None))
    place_on_docker(stack, settings, known, rescue.recovery if rescue else None)
    pulumi.export("passwords", pulumi.Output.secret(stashes))
    pulumi.export(
        "encryption_keys",
        pulumi.Output.secret({"current": settings.encryption.key_ids[-1], "keys": keys}),
    )
    # What opens the archive when all else is gone: `elsapg keys repository`.
    pulumi.export(
        "repository",
        pulumi.Output.secret(
            {
                "s3_access_key": access_key,
                "s3_secret_key": secret_key,
                "repository_cipher": cipher,
            }
        ),
    )
    pulumi.export("ca", authority.certificate)
    pulumi.export(
        "pools",
        [
            {
                "host": settings.docker.connect_address,
                "port": settings.docker.pool_port + index,
            }
            for index, _ in enumerate(t.pooler_names(settings))
        ],
    )
    pulumi.export("direct_port", settings.docker.direct_port)


def _generated(
    name: str, entropy: int, opts: pulumi.ResourceOptions, kept: str | None = None
) -> pulumi.Output[str]:
    """A secret of so many random bytes, in characters that stand anywhere; or one that was kept."""
    return _stashed(name, random.token_urlsafe(entropy), opts, kept)


def _stashed(
    name: str, value: str, opts: pulumi.ResourceOptions, kept: str | None = None
) -> pulumi.Output[str]:
    """A secret made once: later runs offer another value, which `ignore_changes` drops.

    One that was kept outside wins over what an attempt with other keys has left in the state.
    """
    once = pulumi.ResourceOptions(
        ignore_changes=None if kept else ["input"], replace_on_changes=["input"] if kept else None
    )
    stash = pulumi.Stash(
        name,
        input=pulumi.Output.secret(kept or value),
        opts=pulumi.ResourceOptions.merge(opts, once),
    )
    return stash.output


def _secrets(values: dict[str, Any], recovery: Recovery | None) -> Secrets:
    return Secrets(
        ca=values["ca"],
        key_pairs={n: KeyPair(*pair) for n, pair in values["pairs"].items()},
        passwords=values["passwords"],
        s3_access_key=values["s3"][0],
        s3_secret_key=values["s3"][1],
        repository_cipher=values["cipher"],
        recovery=recovery,
    )
