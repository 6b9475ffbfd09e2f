"""The stack's certificate authority and the certificates it signs, as dynamic resources.

A certificate within its renewal window is a change: the next `up` renews it, and the units
reload it. The CA's own renewal keeps its key and its subject, so that what it has signed stays
valid and no unit ever meets a peer it does not trust. Source of the rule: RFC 5280, 6.1.

The module's and the classes' names stand in every stack's state: renaming them breaks it.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pulumi.dynamic import (
    CreateResult,
    DiffResult,
    Resource,
    ResourceProvider,
    UpdateResult,
)

# Clocks differ: a certificate is valid from a little before it is made.
_BACKDATE = datetime.timedelta(hours=1)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _within_window(props: dict[str, Any], renew_before_days: float) -> bool:
    """Whether the certificate in `props` ends within the renewal window."""
    end = datetime.datetime.fromisoformat(props["not_after"])
    return _now() >= end - datetime.timedelta(days=renew_before_days)


def make_ca(name: str, valid_days: float, private_key: str | None = None) -> dict[str, str]:
    """A self-signed CA certificate; with `private_key` (PEM) it renews that CA."""
    key = _load_key(private_key) if private_key else _new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    not_after = _now() + datetime.timedelta(days=valid_days)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return {
        "certificate": _certificate_pem(certificate),
        "private_key": _key_pem(key),
        "not_after": not_after.isoformat(),
    }


@dataclass(frozen=True)
class Described:
    """What a certificate says: names and addresses in their order, its end, what it is for."""

    common_name: str
    names: tuple[str, ...]
    not_after: datetime.datetime
    client: bool
    server: bool

    def within_window(self, renew_before_days: float) -> bool:
        """Whether it ends within the renewal window."""
        return _now() >= self.not_after - datetime.timedelta(days=renew_before_days)


def describe(pem: str) -> Described:
    """Read a certificate (PEM). Raises ValueError if it is none."""
    certificate = x509.load_pem_x509_certificate(pem.encode())
    extensions = certificate.extensions
    names: tuple[str, ...] = ()
    usages: list[x509.ObjectIdentifier] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(name.value) for name in found)
    with contextlib.suppress(x509.ExtensionNotFound):
        usages = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Described(
        common_name=str(common[0].value) if common else "",
        names=names,
        not_after=certificate.not_valid_after_utc,
        client=ExtendedKeyUsageOID.CLIENT_AUTH in usages,
        server=ExtendedKeyUsageOID.SERVER_AUTH in usages,
    )


def is_signed_by(pem: str, ca: str) -> bool:
    """Whether the key of the certificate `ca` has signed the certificate."""
    try:
        x509.load_pem_x509_certificate(pem.encode()).verify_directly_issued_by(
            x509.load_pem_x509_certificate(ca.encode())
        )
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def make_certificate(
    common_name: str,
    names: Sequence[str],
    valid_days: float,
    ca: str,
    ca_key: str,
    client: bool = False,
) -> dict[str, str]:
    """A certificate for a server (`names`: DNS names or addresses) or a client (none).

    `client`: a server that is a client as well. Where it is not, its key opens nothing.
    """
    issuer_key = _load_key(ca_key)
    issuer = x509.load_pem_x509_certificate(ca.encode())
    key = _new_key()
    # No certificate outlives its CA.
    not_after = min(_now() + datetime.timedelta(days=valid_days), issuer.not_valid_after_utc)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] if names else []
    if client or not names:
        usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
    certificate = builder.sign(issuer_key, hashes.SHA256())
    return {
        "certificate": _certificate_pem(certificate),
        "private_key": _key_pem(key),
        "not_after": not_after.isoformat(),
    }


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class _CertificateAuthorityProvider(ResourceProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        made = make_ca(props["common_name"], props["valid_days"])
        return CreateResult(props["common_name"], {**props, **made})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        if olds["common_name"] != news["common_name"]:
            return DiffResult(changes=True, replaces=["common_name"])
        window = news["renew_before_days"]
        changed = any(olds[k] != news[k] for k in ("valid_days", "renew_before_days"))
        return DiffResult(changes=changed or _within_window(olds, window))

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        kept = {k: olds[k] for k in ("certificate", "private_key", "not_after")}
        if olds["valid_days"] != news["valid_days"] or _within_window(
            olds, news["renew_before_days"]
        ):
            kept = make_ca(news["common_name"], news["valid_days"], olds["private_key"])
        return UpdateResult({**news, **kept})


class CertificateAuthority(Resource, module="pki", name="CertificateAuthority"):
    """One per stack. Outputs: certificate (PEM), private_key (PEM, secret), not_after."""

    certificate: pulumi.Output[str]
    private_key: pulumi.Output[str]
    not_after: pulumi.Output[str]

    def __init__(
        self,
        resource_name: str,
        *,
        common_name: str,
        valid_days: float,
        renew_before_days: float,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(
            _CertificateAuthorityProvider(),
            resource_name,
            {
                "common_name": common_name,
                "valid_days": valid_days,
                "renew_before_days": renew_before_days,
                "certificate": None,
                "private_key": None,
                "not_after": None,
            },
            pulumi.ResourceOptions.merge(
                pulumi.ResourceOptions(additional_secret_outputs=["private_key"]), opts
            ),
        )


class _CertificateProvider(ResourceProvider):
    _reissue = ("common_name", "names", "client", "valid_days", "ca_certificate")

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(props["common_name"], {**props, **self._make(props)})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        changed = any(olds.get(k) != news.get(k) for k in (*self._reissue, "renew_before_days"))
        return DiffResult(changes=changed or _within_window(olds, news["renew_before_days"]))

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        if any(olds.get(k) != news.get(k) for k in self._reissue) or _within_window(
            olds, news["renew_before_days"]
        ):
            return UpdateResult({**news, **self._make(news)})
        kept = {k: olds[k] for k in ("certificate", "private_key", "not_after")}
        return UpdateResult({**news, **kept})

    @staticmethod
    def _make(props: dict[str, Any]) -> dict[str, str]:
        return make_certificate(
            props["common_name"],
            props["names"],
            props["valid_days"],
            props["ca_certificate"],
            props["ca_private_key"],
            bool(props.get("client")),
        )


class Certificate(Resource, module="pki", name="Certificate"):
    """A server's or client's key pair. Outputs: certificate, private_key (secret), not_after."""

    certificate: pulumi.Output[str]
    private_key: pulumi.Output[str]
    not_after: pulumi.Output[str]

    def __init__(
        self,
        resource_name: str,
        *,
        common_name: str,
        names: Sequence[str],
        client: bool = False,
        valid_days: float,
        renew_before_days: float,
        ca: CertificateAuthority,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(
            _CertificateProvider(),
            resource_name,
            {
                "common_name": common_name,
                "names": list(names),
                "client": client,
                "valid_days": valid_days,
                "renew_before_days": renew_before_days,
                "ca_certificate": ca.certificate,
                "ca_private_key": ca.private_key,
                "certificate": None,
                "private_key": None,
                "not_after": None,
            },
            pulumi.ResourceOptions.merge(
                pulumi.ResourceOptions(additional_secret_outputs=["private_key", "ca_private_key"]),
                opts,
            ),
        )
