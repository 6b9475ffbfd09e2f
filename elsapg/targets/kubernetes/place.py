"""Places a stack in its namespace: the order in which its parts are made, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pulumi

from elsapg.definition.secrets import Secrets, Source
from elsapg.settings import Settings
from elsapg.targets.kubernetes import images
from elsapg.targets.kubernetes.foundation import Foundation
from elsapg.targets.kubernetes.monitoring import Monitoring
from elsapg.targets.kubernetes.network import Network
from elsapg.targets.kubernetes.nodes import Nodes
from elsapg.targets.kubernetes.objects import Place
from elsapg.targets.kubernetes.poolers import Poolers
from elsapg.targets.kubernetes.runner import Runner
from elsapg.targets.kubernetes.secret_objects import SecretObjects


def place(
    stack: str,
    settings: Settings,
    root: Path,
    known: pulumi.Output[Secrets] | None,
    encryption_keys: pulumi.Output[Mapping[str, str]] | None,
    source: Source | None = None,
) -> None:
    """Register everything. `known` and `encryption_keys`: None where Pulumi holds no secrets.

    `source`: what opens another stack's repository, while this one is made of it.
    """
    import pulumi_kubernetes  # noqa: PLC0415 - half a second, which the docker target need not pay

    provider = pulumi_kubernetes.Provider(
        "kubernetes", context=settings.kubernetes.context, enable_server_side_apply=True
    )
    made = Place(
        stack,
        settings,
        images.read(root, stack, settings),
        pulumi.ResourceOptions(providers={"kubernetes": provider}),
    )
    foundation = Foundation(made)

    def after(*earlier: pulumi.Resource) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(depends_on=[foundation, *earlier])

    secrets = SecretObjects(made, known, encryption_keys, source, after())
    before: list[pulumi.Resource] = [secrets]
    if settings.kubernetes.network_policies:
        # Before the first pod: none is ever open.
        before.append(Network(made, after()))
    nodes = Nodes(made, after(*before))
    poolers = Poolers(made, after(*before))
    Runner(made, after(*before, nodes, poolers))
    if settings.kubernetes.monitoring:
        Monitoring(made, after())
