"""The Secrets of a stack: their names, keys and types, whoever makes them.

Pulumi registers them (`kubernetes.secrets: pulumi`), External Secrets fetches them, cert-manager
signs them, or `elsapg secrets apply` makes them in the cluster. Their shape is always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pulumi

from elsapg.definition.files import (
    File,
    repository_secret,
    roles_secret,
    source_secret,
    tls_secret,
)
from elsapg.definition.secrets import (
    PASSWORD_ROLES,
    KeyPair,
    Secrets,
    Source,
    certificate_names,
    cipher_name,
    is_client_too,
)
from elsapg.settings import Settings
from elsapg.targets.kubernetes import pods
from elsapg.targets.kubernetes.objects import KEEP, Component, Manifest, Place

ROLES, REPOSITORY, ENCRYPTION_KEYS = "roles", "repository", "encryption-keys"
VALUES = (ROLES, REPOSITORY, ENCRYPTION_KEYS)
# The toolkit's own CA, where `elsapg secrets apply` keeps it: no pod mounts it.
CA_KEY = "ca-key"
# What opens the repository of the stack that this one is made of: there until it has its data.
SOURCE = "source"
_RESYNC = "1h"
# As its definition fills them in: what is compared with Git must not differ by that.
_AS_DEFAULTED = {
    "conversionStrategy": "Default",
    "decodingStrategy": "None",
    "metadataPolicy": "None",
}


def value_secrets(
    settings: Settings, secrets: Secrets, encryption_keys: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """The data of the Secrets that hold values: Secret to key to text."""
    files: tuple[File, ...] = (roles_secret(secrets), repository_secret(settings, secrets))
    found = {str(f.kept_in): {pods.secret_key(f): f.content} for f in files}
    return {**found, ENCRYPTION_KEYS: dict(encryption_keys)}


def source_data(settings: Settings, source: Source) -> dict[str, str]:
    """The data of Secret `source`."""
    files = source_secret(settings, source)
    return {pods.secret_key(f): f.content for f in files if f.content}


def key_pair_names(place: Place) -> dict[str, tuple[str, ...]]:
    """Each key pair with the names in its certificate; a client's has none."""
    return certificate_names(place.settings, place.namespace)


def key_pair_data(pair: KeyPair, ca: str) -> dict[str, str]:
    """As cert-manager shapes it, too."""
    return {"tls.crt": pair.certificate, "tls.key": pair.private_key, "ca.crt": ca}


def needed(place: Place) -> dict[str, str]:
    """Every Secret that the pods or the toolkit read, and its type."""
    values = dict.fromkeys((*VALUES, *_of_source(place)), "Opaque")
    return values | {tls_secret(pair): "kubernetes.io/tls" for pair in key_pair_names(place)}


def made_by_hand(place: Place) -> tuple[str, ...]:
    """Of the needed ones those that neither External Secrets nor cert-manager brings."""
    k = place.settings.kubernetes
    values = () if k.secrets == "external" else VALUES
    pairs = () if k.cert_manager else [tls_secret(pair) for pair in key_pair_names(place)]
    return (*values, *_of_source(place), *pairs)


def _of_source(place: Place) -> tuple[str, ...]:
    recovery = place.settings.recovery
    return (SOURCE,) if recovery and recovery.source else ()


def secret_manifest(place: Place, name: str, data: Any) -> Manifest:
    """A Secret; `data` is text by key, or Pulumi's promise of it."""
    kind = "kubernetes.io/tls" if name == CA_KEY else needed(place)[name]
    keep = KEEP if place.settings.protect and name != SOURCE else None
    return place.manifest("v1", "Secret", name, annotations=keep, type=kind, stringData=data)


class SecretObjects(Component):
    """What stands in for the Secrets among the stack's resources.

    `known`: the values, where Pulumi holds them; None where something else makes the Secrets.
    `source`: what opens another stack's repository, while this one is made of it.
    """

    def __init__(
        self,
        place: Place,
        known: pulumi.Output[Secrets] | None,
        encryption_keys: pulumi.Output[Mapping[str, str]] | None,
        source: Source | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("secrets", place, opts)
        k = place.settings.kubernetes
        if source is not None:
            data = pulumi.Output.secret(source_data(place.settings, source))
            self.add(secret_manifest(place, SOURCE, data))
        if known is not None and encryption_keys is not None:
            self._values(place, known, encryption_keys)
            if not k.cert_manager:
                self._key_pairs(place, known)
        if k.secrets == "external":
            for name, template in _templates(place).items():
                self.add(_external_secret(place, name, template))
        if k.cert_manager:
            self._certificates(place)
        self.done()

    def _values(
        self,
        place: Place,
        known: pulumi.Output[Secrets],
        encryption_keys: pulumi.Output[Mapping[str, str]],
    ) -> None:
        data = pulumi.Output.all(known, encryption_keys).apply(
            lambda both: value_secrets(place.settings, both[0], both[1])
        )
        keep = pulumi.ResourceOptions(protect=place.settings.protect)
        for name in VALUES:
            own = data.apply(_item(name))
            self.add(secret_manifest(place, name, pulumi.Output.secret(own)), keep)

    def _key_pairs(self, place: Place, known: pulumi.Output[Secrets]) -> None:
        data = known.apply(
            lambda s: {n: key_pair_data(pair, s.ca) for n, pair in s.key_pairs.items()}
        )
        for pair in key_pair_names(place):
            own = data.apply(_item(pair))
            self.add(secret_manifest(place, tls_secret(pair), pulumi.Output.secret(own)))

    def _certificates(self, place: Place) -> None:
        settings = place.settings
        given = settings.kubernetes.cert_manager_issuer
        before: list[pulumi.Resource] = []
        if given is None:
            before = [self.add(manifest) for manifest in _own_issuer(place)]
        for pair, names in key_pair_names(place).items():
            self.add(
                _certificate(place, pair, names, given or "ca"),
                pulumi.ResourceOptions(depends_on=before),
            )


def _item(name: str) -> Callable[[Mapping[str, dict[str, str]]], dict[str, str]]:
    """Of a mapping that is not known yet. A preview knows no key pairs at all."""
    return lambda all_: all_.get(name, {})


# -- External Secrets ------------------------------------------------------------------------


def store_keys(place: Place) -> dict[str, dict[str, str]]:
    """For each Secret with values: the name that its template uses, and the key in the store."""
    settings = place.settings
    prefix = settings.kubernetes.secret_prefix or f"elsapg/{place.stack}/"
    keys = {f"s3_{part}_key": f"{prefix}s3-{part}-key" for part in ("access", "secret")}
    with_keys = settings.archive.credentials == "keys"
    return {
        ROLES: {f"password_{role}": f"{prefix}password-{role}" for role in PASSWORD_ROLES},
        REPOSITORY: {
            **(keys if with_keys else {}),
            "repository_cipher": f"{prefix}{cipher_name(settings.archive.key_ids[-1])}",
        },
        ENCRYPTION_KEYS: {
            f"key_{index}": f"{prefix}encryption-key-{name}"
            for index, name in enumerate(settings.encryption.key_ids)
        },
    }


def _templates(place: Place) -> dict[str, dict[str, str]]:
    """The same files as everywhere, with the template's names where the values will stand."""
    secrets = Secrets(
        ca="",
        key_pairs={},
        passwords={role: f"{{{{ .password_{role} }}}}" for role in PASSWORD_ROLES},
        s3_access_key="{{ .s3_access_key }}",
        s3_secret_key="{{ .s3_secret_key }}",  # noqa: S106 - a name in a template
        repository_cipher="{{ .repository_cipher }}",
    )
    keys = {
        name: f"{{{{ .key_{index} }}}}"
        for index, name in enumerate(place.settings.encryption.key_ids)
    }
    return value_secrets(place.settings, secrets, keys)


def _external_secret(place: Place, name: str, template: Mapping[str, str]) -> Manifest:
    kind, _, store = str(place.settings.kubernetes.secret_store).partition("/")
    spec = {
        "refreshInterval": _RESYNC,
        "secretStoreRef": {"kind": kind, "name": store},
        "target": {
            "name": name,
            "creationPolicy": "Owner",
            # What the pods read stays, whatever becomes of the store.
            "deletionPolicy": "Retain",
            "template": {
                "engineVersion": "v2",
                "mergePolicy": "Replace",
                "type": "Opaque",
                "metadata": {"labels": place.labels()},
                "data": dict(template),
            },
        },
        "data": [
            {"secretKey": own, "remoteRef": {"key": remote, **_AS_DEFAULTED}}
            for own, remote in store_keys(place)[name].items()
        ],
    }
    return place.manifest("external-secrets.io/v1", "ExternalSecret", name, spec=spec)


# -- cert-manager ----------------------------------------------------------------------------

_CERT_MANAGER = "cert-manager.io/v1"
# Short-lived certificates of PostgreSQL's clients and servers: elliptic curve, as our own.
_KEY = {"algorithm": "ECDSA", "size": 256, "encoding": "PKCS8", "rotationPolicy": "Always"}


def _hours(days: int) -> str:
    return f"{days * 24}h0m0s"


def _own_issuer(place: Place) -> list[Manifest]:
    tls = place.settings.tls
    root = {
        "isCA": True,
        "commonName": f"elsapg {place.stack}",
        "secretName": CA_KEY,
        "duration": _hours(tls.ca_valid_days),
        # A certificate brings the CA's of the day it was made: that one must outlive it.
        "renewBefore": _hours(min(tls.valid_days + tls.renew_before_days, tls.ca_valid_days - 1)),
        # Its renewal keeps the key, so that what it has signed stays valid.
        "privateKey": {**_KEY, "rotationPolicy": "Never"},
        "usages": ["cert sign", "crl sign"],
        "issuerRef": {"kind": "Issuer", "name": "self-signed"},
    }
    return [
        place.manifest(_CERT_MANAGER, "Issuer", "self-signed", spec={"selfSigned": {}}),
        place.manifest(_CERT_MANAGER, "Certificate", "ca", spec=root),
        place.manifest(_CERT_MANAGER, "Issuer", "ca", spec={"ca": {"secretName": CA_KEY}}),
    ]


def _certificate(place: Place, pair: str, names: tuple[str, ...], issuer: str) -> Manifest:
    tls = place.settings.tls
    addresses = [n for n in names if n == "127.0.0.1"]
    usages = ["digital signature"]
    if names:
        usages.append("server auth")
    if not names or is_client_too(pair, place.settings):
        usages.append("client auth")
    spec: Manifest = {
        # A client's common name is the role that it logs in as.
        "commonName": pair,
        "secretName": tls_secret(pair),
        "secretTemplate": {"labels": place.labels()},
        "duration": _hours(tls.valid_days),
        "renewBefore": _hours(tls.renew_before_days),
        "privateKey": _KEY,
        "usages": usages,
        # Never a ClusterIssuer: whoever else may use it could sign himself a superuser.
        "issuerRef": {"kind": "Issuer", "name": issuer},
    }
    if names:
        spec["dnsNames"] = [n for n in names if n not in addresses]
        spec["ipAddresses"] = addresses
    return place.manifest(_CERT_MANAGER, "Certificate", tls_secret(pair), spec=spec)
