"""For the Prometheus operator: what to scrape, and what to be woken up for.

Patroni's own metrics; they say of each node what it is, and whether it follows.
"""

from __future__ import annotations

import pulumi

from elsapg.definition.files import tls_secret
from elsapg.definition.secrets import NODES_PAIR
from elsapg.targets.kubernetes.foundation import NODES
from elsapg.targets.kubernetes.objects import Component, Manifest, Place, selector

_API = "monitoring.coreos.com/v1"


class Monitoring(Component):
    """A PodMonitor and the alerts' rules."""

    def __init__(self, place: Place, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("monitoring", place, opts)
        self.add(_pod_monitor(place))
        self.add(place.manifest(_API, "PrometheusRule", NODES, NODES, spec=_rules(place)))
        self.done()


def _pod_monitor(place: Place) -> Manifest:
    endpoint = {
        "port": "patroni",
        "path": "/metrics",
        "scheme": "https",
        "interval": "15s",
        "tlsConfig": {
            "serverName": NODES_PAIR,
            "ca": {"secret": {"name": tls_secret(NODES_PAIR), "key": "ca.crt"}},
        },
    }
    spec = {"selector": {"matchLabels": selector(NODES)}, "podMetricsEndpoints": [endpoint]}
    return place.manifest(_API, "PodMonitor", NODES, NODES, spec=spec)


def _rules(place: Place) -> Manifest:
    here = f'namespace="{place.namespace}"'
    lag = place.settings.patroni.maximum_lag_on_failover_mb * 1024 * 1024
    nodes = place.settings.postgres.replicas + 1
    return {
        "groups": [
            {
                "name": "elsapg",
                "rules": [
                    _alert(
                        "ElsapgNoPrimary",
                        f"sum(patroni_primary{{{here}}}) < 1 or absent(patroni_primary{{{here}}})",
                        "1m",
                        "critical",
                        "No node leads: nothing can be written.",
                    ),
                    _alert(
                        "ElsapgTwoPrimaries",
                        f"sum(patroni_primary{{{here}}}) > 1",
                        "30s",
                        "critical",
                        "More than one node says that it leads.",
                    ),
                    _alert(
                        "ElsapgNodeDown",
                        f"sum(patroni_postgres_running{{{here}}}) < {nodes}",
                        "5m",
                        "warning",
                        "A node does not run: the next failure may find no standby.",
                    ),
                    _alert(
                        "ElsapgStandbyBehind",
                        f"max(patroni_xlog_location{{{here}}}) - "
                        f"min(patroni_xlog_replayed_location{{{here}}} > 0) > {lag}",
                        "10m",
                        "warning",
                        "A standby replays more than may be lost at a failover behind the primary.",
                    ),
                    *_without_a_standby(place, here),
                    _alert(
                        "ElsapgPaused",
                        f"max(patroni_is_paused{{{here}}}) > 0",
                        "30m",
                        "warning",
                        "Patroni is paused, by hand or by a restore: nothing fails over.",
                    ),
                    _alert(
                        "ElsapgDcsAway",
                        f"max(patroni_failsafe_mode_is_active{{{here}}}) > 0 or "
                        f"time() - min(patroni_dcs_last_seen{{{here}}}) > 120",
                        "2m",
                        "warning",
                        "Patroni does not reach the Kubernetes API: nothing fails over.",
                    ),
                    _alert(
                        "ElsapgPendingRestart",
                        f"max(patroni_pending_restart{{{here}}}) > 0",
                        "30m",
                        "warning",
                        "A setting waits for a restart of PostgreSQL.",
                    ),
                ],
            }
        ]
    }


def _without_a_standby(place: Place, here: str) -> list[Manifest]:
    mode = place.settings.postgres.synchronous
    if mode == "off":
        return []
    severity, then = (
        ("warning", "a failover could lose commits")
        if mode == "on"
        else ("critical", "every commit waits")
    )
    return [
        _alert(
            "ElsapgNoSynchronousStandby",
            f"sum(patroni_sync_standby{{{here}}}) < 1",
            "5m",
            severity,
            f"No standby is synchronous: {then}.",
        )
    ]


def _alert(name: str, expression: str, after: str, severity: str, summary: str) -> Manifest:
    return {
        "alert": name,
        "expr": expression,
        "for": after,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }
