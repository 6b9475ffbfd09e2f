"""The Pulumi program: settings -> secrets and certificates -> definition -> target."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi

from elsapg.definition import topology as t
from elsapg.definition.secrets import (
    CIPHER_BYTES,
    PASSWORD_BYTES,
    PASSWORD_ROLES,
    KeyPair,
    Recovery,
    Secrets,
    certificate_names,
    cipher_name,
    is_client_too,
    new_encryption_key,
    new_secret,
)
from elsapg.errors import UsageError
from elsapg.pki import Certificate, CertificateAuthority
from elsapg.settings import Settings
from elsapg.targets.docker import daemon
from elsapg.targets.docker.place import place as place_on_docker
from elsapg.targets.kubernetes.place import place as place_on_kubernetes


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


def program(stack: str, settings: Settings, root: Path, rescue: Rescue | None = None) -> None:
    """Register every resource of the stack. Runs inside a Pulumi program.

    `rescue`: for a stack that comes out of a repository, while it does; on kubernetes out of that
    of another stack, where Pulumi holds the secrets.
    """
    if not settings.database.provisioned:
        # To register nothing would be to ask for the removal of all that an earlier run made.
        raise UsageError(
            f"stack {stack!r} uses {settings.database.provider} (elsapg:database): nothing is "
            f"there to deploy; `elsapg appsettings --stack {stack}` prints Elsa's settings"
        )
    if settings.target == "kubernetes":
        _on_kubernetes(stack, settings, root, rescue)
    else:
        _on_docker(stack, settings, rescue)


def _on_docker(stack: str, settings: Settings, rescue: Rescue | None) -> None:
    if not pulumi.runtime.is_dry_run():
        daemon.check()
    keep = pulumi.ResourceOptions(protect=settings.protect)
    recovery = rescue.recovery if rescue else None
    kept = rescue.escrow if rescue and rescue.escrow else Escrow()
    stashes = _passwords(keep)
    access_key = _generated("s3-access-key", 15, keep, kept.s3_access_key)
    secret_key = _generated("s3-secret-key", 30, keep, kept.s3_secret_key)
    cipher = _ciphers(settings, keep, kept.repository_cipher)
    keys = _encryption_keys(settings, keep, kept.encryption_keys)
    names = certificate_names(settings, s3_from_outside=daemon.physical_name(stack, t.S3_HOST))
    authority, pairs = _certificates(stack, settings, names, keep)
    known = _known(authority, pairs, stashes, (access_key, secret_key), cipher, recovery)
    place_on_docker(stack, settings, known, recovery)
    _export(settings, stashes, keys)
    # What opens the archive when all else is gone: `elsapg keys repository`.
    opens = {
        "s3_access_key": access_key,
        "s3_secret_key": secret_key,
        "repository_cipher": cipher,
    }
    pulumi.export("repository", pulumi.Output.secret(opens))
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


def _on_kubernetes(stack: str, settings: Settings, root: Path, rescue: Rescue | None) -> None:
    k = settings.kubernetes
    namespace = t.namespace(stack, settings)
    pulumi.export("namespace", namespace)
    pulumi.export("pools", [{"host": f"pgbouncer.{namespace}.svc", "port": t.POOL_PORT}])
    if k.secrets != "pulumi":
        place_on_kubernetes(stack, settings, root, None, None)
        return
    keep = pulumi.ResourceOptions(protect=settings.protect)
    kept = rescue.escrow if rescue and rescue.escrow else Escrow()
    stashes = _passwords(keep)
    cipher = _ciphers(settings, keep, kept.repository_cipher)
    given: tuple[pulumi.Input[str], pulumi.Input[str]] = ("", "")
    if settings.archive.credentials == "keys":
        given = (
            _given("s3-access-key", keep, kept.s3_access_key),
            _given("s3-secret-key", keep, kept.s3_secret_key),
        )
    keys = _encryption_keys(settings, keep, kept.encryption_keys)
    authority: CertificateAuthority | None = None
    pairs: dict[str, Certificate] = {}
    if not k.cert_manager:
        names = certificate_names(settings, namespace)
        authority, pairs = _certificates(stack, settings, names, keep)
        pulumi.export("ca", authority.certificate)
    known = _known(authority, pairs, stashes, given, cipher)
    source = rescue.recovery.source if rescue else None
    place_on_kubernetes(stack, settings, root, known, pulumi.Output.all(**keys), source)
    _export(settings, stashes, keys)


def _passwords(keep: pulumi.ResourceOptions) -> dict[str, pulumi.Output[str]]:
    return {name: _generated(f"password-{name}", PASSWORD_BYTES, keep) for name in PASSWORD_ROLES}


def _ciphers(
    settings: Settings, keep: pulumi.ResourceOptions, kept: str | None = None
) -> pulumi.Output[str]:
    """All are kept, and the last one counts: what an earlier one encrypted is still to be read.

    `kept`: that one, where it was kept outside.
    """
    *earlier, last = (cipher_name(key_id) for key_id in settings.archive.key_ids)
    for name in earlier:
        _generated(name, CIPHER_BYTES, keep)
    return _generated(last, CIPHER_BYTES, keep, kept)


def _encryption_keys(
    settings: Settings, keep: pulumi.ResourceOptions, kept: Mapping[str, str] | None = None
) -> dict[str, pulumi.Output[str]]:
    """For applications, by way of `elsapg keys show`: no unit of the stack ever gets them."""
    given = kept or {}
    return {
        name: _stashed(f"encryption-key-{name}", new_encryption_key(), keep, given.get(name))
        for name in settings.encryption.key_ids
    }


def _certificates(
    stack: str,
    settings: Settings,
    names: Mapping[str, tuple[str, ...]],
    keep: pulumi.ResourceOptions,
) -> tuple[CertificateAuthority, dict[str, Certificate]]:
    authority = CertificateAuthority(
        "ca",
        common_name=f"elsapg {stack}",
        valid_days=settings.tls.ca_valid_days,
        renew_before_days=settings.tls.renew_before_days,
        opts=keep,
    )
    pairs = {
        name: Certificate(
            f"certificate-{name}",
            common_name=name,
            names=own,
            client=is_client_too(name, settings),
            valid_days=settings.tls.valid_days,
            renew_before_days=settings.tls.renew_before_days,
            ca=authority,
        )
        for name, own in names.items()
    }
    return authority, pairs


def _known(
    authority: CertificateAuthority | None,
    pairs: Mapping[str, Certificate],
    passwords: Mapping[str, pulumi.Output[str]],
    s3: tuple[pulumi.Input[str], pulumi.Input[str]],
    cipher: pulumi.Output[str],
    recovery: Recovery | None = None,
) -> pulumi.Output[Secrets]:
    """All secrets together. Secret as a whole: its parts are."""
    return pulumi.Output.all(
        ca=authority.certificate if authority else "",
        passwords=passwords,
        pairs={n: [c.certificate, c.private_key] for n, c in pairs.items()},
        s3=list(s3),
        cipher=cipher,
    ).apply(lambda values: _secrets(values, recovery))


def _export(
    settings: Settings,
    passwords: Mapping[str, pulumi.Output[str]],
    keys: Mapping[str, pulumi.Output[str]],
) -> None:
    pulumi.export("passwords", pulumi.Output.secret(passwords))
    pulumi.export(
        "encryption_keys",
        pulumi.Output.secret({"current": settings.encryption.key_ids[-1], "keys": keys}),
    )


def _given(
    name: str, keep: pulumi.ResourceOptions, otherwise: str | None = None
) -> pulumi.Output[str]:
    """A secret that somebody else has made: from the environment, kept until another is given.

    `otherwise`: what it is where the environment has none.
    """
    variable = f"ELSAPG_{name.upper().replace('-', '_')}"
    value = os.environ.get(variable, "") or otherwise or ""
    # Without the variable the value of the last time stays, if there was one.
    opts = keep if value else _once(keep)
    # Its output is the first value for ever.
    kept = pulumi.Stash(name, input=pulumi.Output.secret(value), opts=opts).input

    def check(found: str) -> str:
        if not found and not pulumi.runtime.is_dry_run():
            raise UsageError(
                f"nobody has said what the {name} is (archive.credentials is 'keys'): put it into "
                f"the environment variable {variable} for this one run, or use web-id"
            )
        return found

    return kept.apply(check)


def _generated(
    name: str, entropy: int, opts: pulumi.ResourceOptions, kept: str | None = None
) -> pulumi.Output[str]:
    """A secret of so many random bytes, in characters that stand anywhere; or one that was kept."""
    return _stashed(name, new_secret(entropy), opts, kept)


def _stashed(
    name: str, value: str, opts: pulumi.ResourceOptions, kept: str | None = None
) -> pulumi.Output[str]:
    """A secret made once: later runs offer another value, which `ignore_changes` drops.

    One that was kept outside wins over what an attempt with other keys has left in the state.
    """
    given = pulumi.ResourceOptions(replace_on_changes=["input"])
    stash = pulumi.Stash(
        name,
        input=pulumi.Output.secret(kept or value),
        opts=pulumi.ResourceOptions.merge(opts, given) if kept else _once(opts),
    )
    return stash.output


def _once(opts: pulumi.ResourceOptions) -> pulumi.ResourceOptions:
    return pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(ignore_changes=["input"]))


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
