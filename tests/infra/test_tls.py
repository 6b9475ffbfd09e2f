"""TLS: the certificates really served on every port, and what every port refuses."""

from __future__ import annotations

import datetime
import re
import socket
import ssl
import struct
from collections.abc import Mapping

import pytest
from cryptography import x509

from elsapg.definition import topology as t
from elsapg.services.hazards import renews
from tests.infra.endpoints import Answer, Endpoint, ask, endpoints, names_of
from tests.infra.facts import Facts, Unit, judge, none, same, unjudged

RENEW = "run `elsapg up --refresh`, which renews certificates and reloads whoever serves them"
SSL_REQUEST = struct.pack("!ii", 8, 80877103)


@pytest.fixture(scope="session")
def answers(facts: Facts) -> Mapping[str, Answer]:
    asked = tuple(e for e in endpoints(facts.deployment.settings) if facts.runs(e.unit))
    return ask(facts, asked)


@pytest.fixture(scope="session")
def served(facts: Facts, answers: Mapping[str, Answer]) -> list[tuple[Endpoint, Answer]]:
    """Every endpoint that should answer. The stable read address needs a PostgreSQL behind it."""
    known = endpoints(facts.deployment.settings)
    return [(e, answers[e.name]) for e in known if e.name in answers]


def _handshake(facts: Facts, pooler: str, context: ssl.SSLContext) -> tuple[str, bytes]:
    """TLS with a published port as PostgreSQL's protocol begins it: version and certificate."""
    try:
        return _hands(facts, pooler, context)
    except ConnectionError:
        # An ssl.SSLError is none of these: it is an answer.
        if not facts.backend.lost(pooler):
            raise
        return _hands(facts, pooler, context)


def _hands(facts: Facts, pooler: str, context: ssl.SSLContext) -> tuple[str, bytes]:
    where = facts.backend.pool(pooler)
    with socket.create_connection(where, timeout=5) as raw:
        raw.sendall(SSL_REQUEST)
        answer = raw.recv(1)
        judge(answer == b"S", f"{pooler} answers {answer!r} to a request for TLS", RENEW)
        with context.wrap_socket(raw, server_hostname=where[0]) as secure:
            return secure.version() or "", secure.getpeercert(binary_form=True) or b""


def test_clients_get_verified_tls_1_3(facts: Facts, pooler: str) -> None:
    """A client of this machine gets TLS 1.3, and can verify the pooler by the stack's CA."""
    facts.need(pooler)
    context = ssl.create_default_context(cadata=facts.deployment.outputs["ca"])
    try:
        version, _ = _handshake(facts, pooler, context)
    except (ssl.SSLError, OSError) as error:
        judge(False, f"{pooler}: {error}", RENEW)
    else:
        same(version, "TLSv1.3", RENEW)


def test_clients_cannot_use_tls_1_2(facts: Facts, pooler: str) -> None:
    """A client that offers at most TLS 1.2 is refused by the pooler."""
    facts.need(pooler)
    context = ssl.create_default_context(cadata=facts.deployment.outputs["ca"])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        version, _ = _handshake(facts, pooler, context)
    except (ssl.SSLError, ConnectionError):
        return
    judge(
        False,
        f"{pooler} spoke {version}",
        "run `elsapg up --refresh`: client_tls_protocols is tlsv1.3",
    )


def test_every_port_is_verified_by_the_ca(served: list[tuple[Endpoint, Answer]]) -> None:
    """Every port serves a certificate that the stack's CA signed, for the name it is called by."""
    none((f"{e.name}: {a.trusted}" for e, a in served if not a.trusted.startswith("0 ")), RENEW)


def test_every_port_offers_tls_1_3(served: list[tuple[Endpoint, Answer]]) -> None:
    """Every port speaks TLS 1.3."""
    none((e.name for e, a in served if "TLSv1.3" not in a.tls13), RENEW)


def test_tls_1_2_is_refused(served: list[tuple[Endpoint, Answer]]) -> None:
    """PostgreSQL, PgBouncer and etcd refuse TLS 1.2."""
    none(
        (
            e.name
            for e, a in served
            if e.only_13 and re.search(r"BEGIN CERTIFICATE|Cipher is [A-Z]+-", a.tls12)
        ),
        "run `elsapg up --refresh`: their least version is TLS 1.3",
    )


def test_clear_text_is_refused(served: list[tuple[Endpoint, Answer]]) -> None:
    """No port does anything for a client without TLS."""
    refusal = r"(no encryption|SSL required|pg_hba\.conf rejects|TLS)"
    none(
        (
            f"{e.name} says {' '.join(a.clear.split())[:80]!r}"
            for e, a in served
            if (e.postgres and not re.search(refusal, a.clear))
            or (not e.postgres and re.search(r"HTTP/1\.[01] [23]", a.clear))
        ),
        "run `elsapg up --refresh`; pg_hba.conf must hold hostssl rules only",
    )


def test_certificates_name_their_units(facts: Facts, served: list[tuple[Endpoint, Answer]]) -> None:
    """Every certificate served holds the names and addresses that it should, and no others."""
    wrong = []
    for endpoint, answer in served:
        certificate = answer.certificate
        if certificate is None:
            continue  # another check's finding
        names = _names(certificate)
        wanted = set(names_of(facts.deployment, endpoint))
        if names != wanted and not (endpoint.certificate == "" and wanted <= names):
            wrong.append(f"{endpoint.name} serves one for {', '.join(sorted(names)) or 'nobody'}")
    none(wrong, RENEW)


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return set(found.get_values_for_type(x509.DNSName)) | {
        str(address) for address in found.get_values_for_type(x509.IPAddress)
    }


def test_what_is_served_is_what_was_deployed(
    facts: Facts, served: list[tuple[Endpoint, Answer]]
) -> None:
    """Every process serves the certificate that lies beside it: none still holds an old one."""
    wrong = []
    for endpoint, answer in served:
        if not endpoint.certificate or answer.certificate is None:
            continue
        text = facts.unit(endpoint.unit).certificates.get("server.crt", "")
        if not text or x509.load_pem_x509_certificate(text.encode()) != answer.certificate:
            wrong.append(endpoint.name)
    none(wrong, "reload the unit: it did not take the new certificate")


def test_no_certificate_nears_its_end(facts: Facts, unit: Unit) -> None:
    """No certificate of the unit, server's or client's, ends within the renewal window."""
    window = datetime.timedelta(days=facts.deployment.settings.tls.renew_before_days)
    now = datetime.datetime.now(datetime.UTC)
    none(
        (
            f"{name} ends {certificate.not_valid_after_utc:%Y-%m-%d}"
            for name, certificate in (
                (name, x509.load_pem_x509_certificate(text.encode()))
                for name, text in unit.certificates.items()
            )
            if certificate.not_valid_after_utc - now <= window
            or certificate.not_valid_before_utc > now
        ),
        renews(facts.deployment),
    )


@pytest.mark.target("docker", reason="kubernetes has no etcd of the stack's own")
def test_etcd_wants_a_client_certificate(facts: Facts) -> None:
    """etcd answers nobody who has no certificate of this stack's CA."""
    member = next((n for n in t.etcd_names(facts.deployment.settings) if facts.runs(n)), None)
    if member is None:
        unjudged("no etcd runs")
    # Patroni's own unit has curl, and a certificate that it does not use here.
    node = next((n for n in facts.deployment.nodes if facts.runs(n)), None)
    if node is None:
        unjudged("no PostgreSQL node runs")
    done = facts.backend.host(node).run(
        "curl -sS --max-time 5 --cacert /etc/elsapg/tls/ca.crt "
        f"https://{member}:{t.ETCD_PORT}/version"
    )
    judge(done.rc != 0, f"{member} answered {done.stdout[:60]!r}", "client-cert-auth must be on")


def test_patroni_obeys_only_certificates(facts: Facts, node: str) -> None:
    """Nobody without a certificate of this stack's CA can command Patroni."""
    facts.need(node)
    # Patroni asks for the certificate before it looks at the request: nothing is changed.
    done = facts.backend.host(node).run(
        "curl -sS --max-time 5 --cacert /etc/elsapg/tls/ca.crt -o /dev/null -w '%{http_code}' "
        f"-X PATCH -d '{{}}' https://{node}:{t.PATRONI_PORT}/config"
    )
    same(
        done.stdout.strip(), "403", "run `elsapg up --refresh`: Patroni's verify_client must be set"
    )
