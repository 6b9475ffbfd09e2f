"""Which pod may speak to which: nothing, then one opened way per hop.

Replies need no rule. The kubelet's probes come from the pod's own machine, which always may.
"""

from __future__ import annotations

import pulumi

from elsapg.definition import topology as t
from elsapg.targets.kubernetes.foundation import NODES, POOLERS, RUNNER
from elsapg.targets.kubernetes.objects import Component, Manifest, Place, selector

_NAMESPACE_LABEL = "kubernetes.io/metadata.name"


class Network(Component):
    """The NetworkPolicies of the stack."""

    def __init__(self, place: Place, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("network", place, opts)
        for manifest in policies(place):
            self.add(manifest)
        self.done()


def policies(place: Place) -> list[Manifest]:
    """Every policy; each says one way, from one side."""
    k = place.settings.kubernetes
    nodes, poolers, runner = (_pods(name) for name in (NODES, POOLERS, RUNNER))
    inside, console = (t.PG_PORT, t.PATRONI_PORT), (t.PG_PORT, t.PATRONI_PORT, t.AGENT_PORT)
    repositories = (t.s3_address(place.settings), t.second_s3_address(place.settings))
    s3 = (*(port for _, port in repositories), *k.s3_ports)
    api_server = _blocks(k.api_server_cidrs)
    made = [
        _policy(place, "deny-all", None, {"policyTypes": ["Ingress", "Egress"]}),
        _policy(place, "dns", None, {"policyTypes": ["Egress"], "egress": [_dns(place)]}),
        _ingress(place, "nodes-from-nodes", NODES, [nodes], inside),
        _egress(place, "nodes-to-nodes", NODES, [nodes], inside),
        _ingress(place, "nodes-from-poolers", NODES, [poolers], (t.PG_PORT,)),
        _egress(place, "poolers-to-nodes", POOLERS, [nodes], (t.PG_PORT,)),
        _ingress(place, "nodes-from-runner", NODES, [runner], console),
        _egress(place, "runner-to-nodes", RUNNER, [nodes], console),
        _ingress(place, "gates-from-nodes", POOLERS, [nodes], (t.GATE_PORT,)),
        _egress(place, "nodes-to-gates", NODES, [poolers], (t.GATE_PORT,)),
        _ingress(place, "gates-from-runner", POOLERS, [runner], (t.GATE_PORT,)),
        _egress(place, "runner-to-gates", RUNNER, [poolers], (t.GATE_PORT,)),
        # The API server is outside of all pods.
        _egress(place, "nodes-to-api-server", NODES, api_server, k.api_server_ports),
        _egress(place, "runner-to-api-server", RUNNER, api_server, k.api_server_ports),
        _egress(place, "nodes-to-s3", NODES, _blocks(k.s3_cidrs), s3),
        _egress(place, "runner-to-s3", RUNNER, _blocks(k.s3_cidrs), s3),
    ]
    applications = [*_namespaces(k.application_namespaces), *_blocks(k.application_cidrs)]
    if applications:
        made.append(
            _ingress(place, "pools-from-applications", POOLERS, applications, (t.POOL_PORT,))
        )
    if k.monitoring:
        prometheus = _namespaces((k.monitoring_namespace,))
        made.append(_ingress(place, "nodes-from-monitoring", NODES, prometheus, (t.PATRONI_PORT,)))
    return made


def _policy(place: Place, name: str, component: str | None, spec: Manifest) -> Manifest:
    chosen = {"matchLabels": selector(component)} if component else {}
    return place.manifest(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        name,
        component,
        spec={"podSelector": chosen, **spec},
    )


def _ingress(
    place: Place, name: str, component: str, peers: list[Manifest], ports: tuple[int, ...]
) -> Manifest:
    rule = {**({"from": peers} if peers else {}), "ports": _ports(ports)}
    return _policy(place, name, component, {"policyTypes": ["Ingress"], "ingress": [rule]})


def _egress(
    place: Place, name: str, component: str, peers: list[Manifest], ports: tuple[int, ...]
) -> Manifest:
    rule = {**({"to": peers} if peers else {}), "ports": _ports(ports)}
    return _policy(place, name, component, {"policyTypes": ["Egress"], "egress": [rule]})


def _dns(place: Place) -> Manifest:
    k = place.settings.kubernetes
    return {
        "to": [*_namespaces(k.dns_namespaces), *_blocks(k.dns_cidrs)],
        "ports": [
            {"protocol": protocol, "port": port}
            for port in dict.fromkeys(k.dns_ports)
            for protocol in ("UDP", "TCP")
        ],
    }


def _pods(component: str) -> Manifest:
    return {"podSelector": {"matchLabels": selector(component)}}


def _namespaces(names: tuple[str, ...]) -> list[Manifest]:
    return [{"namespaceSelector": {"matchLabels": {_NAMESPACE_LABEL: name}}} for name in names]


def _blocks(cidrs: tuple[str, ...]) -> list[Manifest]:
    return [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]


def _ports(numbers: tuple[int, ...]) -> list[Manifest]:
    return [{"protocol": "TCP", "port": number} for number in dict.fromkeys(numbers)]
