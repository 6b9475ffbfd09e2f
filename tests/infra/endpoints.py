"""Every port of a stack, asked from inside its network: what it serves, and what it refuses.

One script in a unit that has openssl, bash and psql asks all that this unit may ask: on docker a
PgBouncer's asks everybody; on kubernetes network policies let a node or pool ask itself, and the
pools PostgreSQL.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cryptography import x509

from elsapg.definition import topology as t
from elsapg.definition.secrets import NODES_PAIR, POOLERS_PAIR, certificate_names
from elsapg.services.deployment import Deployment
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
    asker: str = ""
    """The unit that asks; any PgBouncer if empty."""

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        return f"{self.asker} itself ({self.address})" if self.host == LOCAL else self.address


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


LOCAL = "localhost"


def endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """Every port that a unit of the stack listens on."""
    return _in_pods(settings) if settings.target == "kubernetes" else _on_docker(settings)


def _in_pods(settings: Settings) -> tuple[Endpoint, ...]:
    found = []
    for node in t.node_names(settings):
        agent = t.agent_name(node)
        found += [
            Endpoint(node, node, t.PG_PORT, NODES_PAIR, True, True, asker=node),
            Endpoint(node, node, t.PATRONI_PORT, NODES_PAIR, asker=node),
            Endpoint(agent, agent, t.AGENT_PORT, NODES_PAIR, asker=node),
        ]
    for name in t.pooler_names(settings):
        found += [
            Endpoint(name, LOCAL, t.POOL_PORT, POOLERS_PAIR, True, True, asker=name),
            Endpoint(name, LOCAL, t.GATE_PORT, POOLERS_PAIR, only_13=True, asker=name),
        ]
    # A Service's own port; whose certificate is served there, another endpoint says.
    first = t.node_names(settings)[0]
    found += [
        Endpoint(first, t.PRIMARY_HOST, t.PG_PORT, "", True, True),
        Endpoint(first, t.REPLICA_HOST, t.REPLICA_PORT, "", True, True),
    ]
    return tuple(found)


def _on_docker(settings: Settings) -> tuple[Endpoint, ...]:
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


def names_of(deployment: Deployment, endpoint: Endpoint) -> tuple[str, ...]:
    """The names that the endpoint's certificate must hold; a stable address: its own."""
    if not endpoint.certificate:
        return (endpoint.host,)
    settings = deployment.settings
    if settings.target == "docker":
        # By its container's name a clone reaches this stack's S3.
        names = certificate_names(settings, s3_from_outside=deployment.hosts.physical(t.S3_HOST))
    else:
        names = certificate_names(settings, t.namespace(deployment.stack, settings))
    return names[endpoint.certificate]


_SCRIPT = r"""
ask() {
  timeout 10 openssl s_client -connect "$1:$2" -servername "$1" -verify_hostname "$1" \
    -CAfile /etc/elsapg/tls/ca.crt $3 "$4" </dev/null 2>&1
}
clear() {
  if [ -n "$3" ]; then
    PGCONNECT_TIMEOUT=10 psql -X -c 'SELECT 1' \
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
    askers: dict[str, list[Endpoint]] = {}
    for endpoint in asked:
        askers.setdefault(endpoint.asker or facts.any_pooler, []).append(endpoint)
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda asker: _ask(facts, *asker), askers.items())
        return {name: answer for answers in found for name, answer in answers.items()}


def _ask(facts: Facts, asker: str, asked: list[Endpoint]) -> Mapping[str, Answer]:
    lines = [
        f"endpoint {e.host} {e.port} {shlex.quote('-starttls postgres' if e.postgres else '')}"
        for e in asked
    ]
    output = facts.backend.host(asker).run(_SCRIPT + "\n".join(lines)).stdout
    told: dict[str, str] = {}
    for part in output.split(SEPARATOR):
        head, _, body = part.partition("\n")
        told[head] = body
    return {
        e.name: Answer(*(told.get(f"{e.address} {kind}", "") for kind in ("13", "12", "clear")))
        for e in asked
    }
