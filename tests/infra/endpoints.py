"""Every port of a stack, asked from inside its network: what it serves, and what it refuses.

One script in a PgBouncer's unit, which has openssl, bash and psql, asks them all.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509

from elsapg.definition import topology as t
from elsapg.definition.secrets import certificate_names
from elsapg.settings import Settings
from tests.infra.facts import SEPARATOR, Facts


@dataclass(frozen=True)
class Endpoint:
    """A port: the unit behind it, the key pair it must show, and whether TLS 1.2 is refused."""

    unit: str
    host: str
    port: int
    certificate: str
    postgres: bool = False
    only_13: bool = False

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """What an endpoint said to a TLS 1.3 client, a TLS 1.2 client, and one without TLS."""

    tls13: str
    tls12: str
    clear: str

    @property
    def certificate(self) -> x509.Certificate | None:
        """The certificate that was served."""
        pem = re.search(
            r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", self.tls13, re.DOTALL
        )
        return x509.load_pem_x509_certificate(pem[0].encode()) if pem else None

    @property
    def trusted(self) -> str:
        """ "0 (ok)", or why openssl does not trust it."""
        told = re.findall(r"Verif(?:y return code|ication error): (.+)", self.tls13)
        failed = [line for line in told if not line.startswith("0 ")]
        return failed[0] if failed else (told[0] if told else "no certificate was served")


def endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """Every port that a unit of the stack listens on."""
    found = []
    for node in t.node_names(settings):
        agent = t.agent_name(node)
        found += [
            Endpoint(node, node, t.PG_PORT, node, postgres=True, only_13=True),
            Endpoint(node, node, t.PATRONI_PORT, node),
            Endpoint(agent, agent, t.AGENT_PORT, node),
        ]
    for name in t.etcd_names(settings):
        found += [
            Endpoint(name, name, port, name, only_13=True)
            for port in (t.ETCD_PORT, t.ETCD_PEER_PORT)
        ]
    found += [
        Endpoint(name, name, t.POOL_PORT, name, postgres=True, only_13=True)
        for name in t.pooler_names(settings)
    ]
    found += [
        Endpoint("haproxy", t.PRIMARY_HOST, t.PG_PORT, "", postgres=True, only_13=True),
        Endpoint("haproxy", t.REPLICA_HOST, t.REPLICA_PORT, "", postgres=True, only_13=True),
        Endpoint("s3", t.S3_HOST, t.S3_PORT, "s3"),
    ]
    return tuple(found)


def names_of(settings: Settings, endpoint: Endpoint, s3: str) -> tuple[str, ...]:
    """The names that the endpoint's certificate must hold; a stable address: its own.

    `s3`: by which name a clone reaches this stack's S3.
    """
    if not endpoint.certificate:
        return (endpoint.host,)
    return certificate_names(settings, s3_from_outside=s3)[endpoint.certificate]


_SCRIPT = r"""
ask() {
  timeout 5 openssl s_client -connect "$1:$2" -servername "$1" -verify_hostname "$1" \
    -CAfile /etc/elsapg/tls/ca.crt $3 "$4" </dev/null 2>&1
}
clear() {
  if [ -n "$3" ]; then
    PGCONNECT_TIMEOUT=3 psql -X -c 'SELECT 1' \
      "host=$1 port=$2 user=elsa_app dbname=elsa_workflows sslmode=disable" 2>&1
  else
    timeout 2 bash -c 'exec 3<>/dev/tcp/$0/$1 && printf "GET / HTTP/1.0\r\n\r\n" >&3 && cat <&3' \
      "$1" "$2" 2>&1 | tr -d '\000'
  fi
}
endpoint() {
  { ask "$1" "$2" "$3" -tls1_3; } >"$work/$1-$2.13" &
  { ask "$1" "$2" "$3" -tls1_2; } >"$work/$1-$2.12" &
  { clear "$1" "$2" "$3"; } >"$work/$1-$2.clear" &
  wait
  for kind in 13 12 clear; do
    printf '\036%s:%s %s\n' "$1" "$2" "$kind"; cat "$work/$1-$2.$kind"
  done
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"""


def ask(facts: Facts, asked: tuple[Endpoint, ...]) -> Mapping[str, Answer]:
    """What each endpoint answered, by its name."""
    lines = [
        f"endpoint {e.host} {e.port} {shlex.quote('-starttls postgres' if e.postgres else '')}"
        for e in asked
    ]
    host = facts.backend.host(facts.any_pooler)
    output = host.run(_SCRIPT + "\n".join(lines)).stdout
    told: dict[str, str] = {}
    for part in output.split(SEPARATOR):
        head, _, body = part.partition("\n")
        told[head] = body
    return {
        e.name: Answer(*(told.get(f"{e.name} {kind}", "") for kind in ("13", "12", "clear")))
        for e in asked
    }
