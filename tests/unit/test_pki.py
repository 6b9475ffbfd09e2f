"""The stack's CA: what it signs, when it renews, and that a renewal breaks no trust."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from elsapg import pki
from elsapg.definition.secrets import CLIENTS, certificate_names
from elsapg.pki import make_ca, make_certificate
from elsapg.settings import Settings

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


def load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def leaf(ca: dict[str, str], name: str = "pg-1", names: tuple[str, ...] | None = None) -> Any:
    names = ("pg-1", "primary", "127.0.0.1") if names is None else names
    return make_certificate(name, names, 365, ca["certificate"], ca["private_key"], True)


def usages(pem: str) -> set[x509.ObjectIdentifier]:
    extension = load(pem).extensions.get_extension_for_oid(ExtensionOID.EXTENDED_KEY_USAGE)
    return set(extension.value)  # type: ignore[call-overload]


def public(pem: str) -> bytes:
    return (
        load(pem)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def verifies(ca_pem: str, pem: str, name: str) -> bool:
    """By the strict path validation of RFC 5280, as `cryptography` does it."""
    store = Store([load(ca_pem)])
    verifier = PolicyBuilder().store(store).build_server_verifier(x509.DNSName(name))
    try:
        verifier.verify(load(pem), [])
    except VerificationError:
        return False
    return True


def shakes_hands(folder: Path, ca_pem: str, pair: dict[str, str], name: str) -> bool:
    """By OpenSSL, as the units do it: both ends show the certificate, both verify it."""
    for file, text in (("ca", ca_pem), ("crt", pair["certificate"]), ("key", pair["private_key"])):
        (folder / file).write_text(text)
    contexts = {}
    for side, purpose in (("server", ssl.Purpose.CLIENT_AUTH), ("client", ssl.Purpose.SERVER_AUTH)):
        contexts[side] = ssl.create_default_context(purpose, cafile=str(folder / "ca"))
        contexts[side].load_cert_chain(folder / "crt", folder / "key")
        contexts[side].verify_mode = ssl.CERT_REQUIRED
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts["client"].wrap_bio(down, up, server_hostname=name)
    server = contexts["server"].wrap_bio(up, down, server_side=True)
    waiting = [client, server]
    try:
        for _ in range(10):
            for end in list(waiting):
                try:
                    end.do_handshake()
                    waiting.remove(end)
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError:
        return False
    return not waiting


@pytest.fixture(scope="module")
def ca() -> dict[str, str]:
    return make_ca("elsapg test", 3650)


def test_the_ca_may_sign_certificates_and_no_further_ca(ca: dict[str, str]) -> None:
    certificate = load(ca["certificate"])
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature


def test_a_server_is_known_by_all_its_names_and_may_be_a_client(ca: dict[str, str]) -> None:
    made = leaf(ca)
    certificate = load(made["certificate"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["pg-1", "primary"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert certificate.subject.rfc4514_string() == "CN=pg-1"
    assert usages(made["certificate"]) == {SERVER, CLIENT}
    only_server = make_certificate("s3", ["s3"], 10, ca["certificate"], ca["private_key"])
    assert usages(only_server["certificate"]) == {SERVER}, "its key must open nothing"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert verifies(ca["certificate"], made["certificate"], "primary")
    assert not verifies(ca["certificate"], made["certificate"], "pg-2")
    assert not verifies(make_ca("elsapg test", 30)["certificate"], made["certificate"], "pg-1")


def test_a_clients_certificate_is_no_servers(ca: dict[str, str]) -> None:
    made = leaf(ca, "replicator", ())
    assert usages(made["certificate"]) == {CLIENT}
    with pytest.raises(x509.ExtensionNotFound):
        load(made["certificate"]).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    # Its CN is the role that it logs in.
    assert load(made["certificate"]).subject.rfc4514_string() == "CN=replicator"


def test_every_certificate_has_a_key_and_a_serial_of_its_own(ca: dict[str, str]) -> None:
    one, other = leaf(ca), leaf(ca)
    assert one["private_key"] != other["private_key"]
    assert load(one["certificate"]).serial_number != load(other["certificate"]).serial_number
    key = serialization.load_pem_private_key(one["private_key"].encode(), None)
    assert key.public_key() == load(one["certificate"]).public_key()


def test_it_is_valid_from_a_little_before_now(ca: dict[str, str]) -> None:
    certificate = load(leaf(ca)["certificate"])
    now = datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(minutes=59) < now - certificate.not_valid_before_utc
    days = (certificate.not_valid_after_utc - now).total_seconds() / 86400
    assert 364.9 < days <= 365


def test_no_certificate_outlives_its_ca() -> None:
    short = make_ca("elsapg short", 30)
    made = leaf(short)
    end = load(made["certificate"]).not_valid_after_utc
    assert end == load(short["certificate"]).not_valid_after_utc
    assert datetime.datetime.fromisoformat(made["not_after"]) == end


def test_a_renewed_ca_is_the_same_to_all_who_trust_it(ca: dict[str, str], tmp_path: Path) -> None:
    renewed = make_ca("elsapg test", 3650, ca["private_key"])
    before, after = load(ca["certificate"]), load(renewed["certificate"])
    assert renewed["private_key"] == ca["private_key"]
    assert public(renewed["certificate"]) == public(ca["certificate"])
    assert (after.subject, after.issuer) == (before.subject, before.issuer)
    assert after.serial_number != before.serial_number
    # Of old and new, each CA certificate verifies what the other's has signed.
    for trusted in (ca, renewed):
        for signer in (ca, renewed):
            made = leaf(signer)
            assert verifies(trusted["certificate"], made["certificate"], "pg-1")
            assert shakes_hands(tmp_path, trusted["certificate"], made, "primary")
    stranger = make_ca("elsapg test", 3650)
    assert not verifies(stranger["certificate"], leaf(ca)["certificate"], "pg-1")
    assert not shakes_hands(tmp_path, stranger["certificate"], leaf(ca), "primary")


# -- the providers -------------------------------------------------------------------------

AUTHORITY = pki._CertificateAuthorityProvider()
SIGNER = pki._CertificateProvider()
CA_PROPS: dict[str, Any] = {
    "common_name": "elsapg test",
    "valid_days": 100,
    "renew_before_days": 30,
}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Moves the clock of `elsapg.pki` on by days."""

    def move(days: float) -> None:
        then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        monkeypatch.setattr(pki, "_now", lambda: then)

    return move


def signed(ca: dict[str, str]) -> dict[str, Any]:
    props = {
        "common_name": "pg-1",
        "names": ["pg-1"],
        "valid_days": 90,
        "renew_before_days": 30,
        "ca_certificate": ca["certificate"],
        "ca_private_key": ca["private_key"],
    }
    return dict(SIGNER.create(props).outs or {})


def inputs(outs: dict[str, Any]) -> dict[str, Any]:
    made = ("certificate", "private_key", "not_after")
    return {**outs, **dict.fromkeys(made)}


@pytest.mark.parametrize(("day", "due"), [(0, False), (59.9, False), (60.1, True), (91, True)])
def test_a_certificate_is_renewed_within_its_window(
    ca: dict[str, str], later: Any, day: float, due: bool
) -> None:
    outs = signed(ca)
    later(day)
    assert SIGNER.diff("x", outs, inputs(outs)).changes is due
    after = dict(SIGNER.update("x", outs, inputs(outs)).outs or {})
    assert (after["certificate"] != outs["certificate"]) is due
    # Renewed once, it is not due again.
    assert SIGNER.diff("x", after, inputs(after)).changes is False


@pytest.mark.parametrize(("day", "due"), [(0, False), (69.9, False), (70.1, True)])
def test_the_ca_is_renewed_within_its_window(later: Any, day: float, due: bool) -> None:
    outs = dict(AUTHORITY.create(CA_PROPS).outs or {})
    later(day)
    assert AUTHORITY.diff("x", outs, inputs(outs)).changes is due
    after = dict(AUTHORITY.update("x", outs, inputs(outs)).outs or {})
    assert (after["certificate"] != outs["certificate"]) is due
    assert after["private_key"] == outs["private_key"]
    assert AUTHORITY.diff("x", after, inputs(after)).changes is False


@pytest.mark.parametrize(
    ("changed", "value", "renewed"),
    [
        ("valid_days", 80, True),
        ("names", ["pg-1", "replica"], True),
        ("common_name", "pg-9", True),
        ("renew_before_days", 20, False),
    ],
)
def test_a_changed_input_of_a_certificate(
    ca: dict[str, str], changed: str, value: Any, renewed: bool
) -> None:
    outs = signed(ca)
    news = {**inputs(outs), changed: value}
    assert SIGNER.diff("x", outs, news).changes is True
    after = dict(SIGNER.update("x", outs, news).outs or {})
    assert (after["certificate"] != outs["certificate"]) is renewed
    assert after[changed] == value
    assert SIGNER.diff("x", after, inputs(after)).changes is False


def test_a_renewed_ca_signs_everything_anew(ca: dict[str, str]) -> None:
    outs = signed(ca)
    renewed = make_ca("elsapg test", 3650, ca["private_key"])
    news = {**inputs(outs), "ca_certificate": renewed["certificate"]}
    assert SIGNER.diff("x", outs, news).changes is True
    after = dict(SIGNER.update("x", outs, news).outs or {})
    assert verifies(ca["certificate"], after["certificate"], "pg-1")
    assert verifies(renewed["certificate"], after["certificate"], "pg-1")


def test_another_name_is_another_ca() -> None:
    outs = dict(AUTHORITY.create(CA_PROPS).outs or {})
    found = AUTHORITY.diff("x", outs, {**inputs(outs), "common_name": "elsapg other"})
    assert (found.changes, found.replaces) == (True, ["common_name"])


def test_the_names_are_those_that_peers_ask_for() -> None:
    settings = Settings.model_validate({"docker": {"bind_address": "192.0.2.7"}})
    names = certificate_names(settings)
    assert {n for n, sans in names.items() if not sans} == set(CLIENTS)
    assert {"pg-1", "pg-1-agent", "primary", "replica", "localhost"} <= set(names["pg-1"])
    assert {"pgbouncer-2", "pgbouncer", "192.0.2.7"} <= set(names["pgbouncer-2"])
    # By the direct port.
    assert "192.0.2.7" in names["pg-1"]
    everywhere = Settings.model_validate({"docker": {"bind_address": "0.0.0.0"}})
    assert "0.0.0.0" not in certificate_names(everywhere)["pgbouncer-1"]
