"""The Secrets of a namespace as the cluster has them: read by kubectl, and taken apart."""

from __future__ import annotations

import base64
import configparser
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from elsapg.errors import UsageError
from elsapg.targets.kubernetes.kubectl import Kubectl
from elsapg.targets.kubernetes.objects import Place
from elsapg.targets.kubernetes.secret_objects import REPOSITORY

Data = dict[str, str]


class Cluster(Protocol):
    """What is needed of kubectl: run it, with text for its standard input; its output."""

    def __call__(self, *arguments: str, stdin: str | None = None) -> str: ...


def kubectl(place: Place) -> Cluster:
    """The stack's cluster and namespace."""
    return Kubectl(place.stack, place.namespace, place.settings.kubernetes.context).run


@dataclass(frozen=True)
class Kept:
    """A Secret as the cluster has it."""

    data: Data
    version: str
    raw: Mapping[str, Any]


def read_secrets(cluster: Cluster, names: tuple[str, ...]) -> dict[str, Kept]:
    """Those of `names` that are in the namespace (which may be missing as well)."""
    text = cluster("get", "secret", *names, "--ignore-not-found", "-o", "json")
    document = json.loads(text) if text.strip() else {"items": []}
    items = document.get("items", [document])
    return {
        item["metadata"]["name"]: Kept(
            {k: base64.b64decode(v).decode() for k, v in (item.get("data") or {}).items()},
            item["metadata"].get("resourceVersion", ""),
            item,
        )
        for item in items
    }


def json_of(kept: Kept | None, key: str) -> dict[str, str]:
    """What a Secret has as JSON under a key. Raises UsageError if it is none."""
    if kept is None:
        return {}
    try:
        found = json.loads(kept.data[key])
        return {str(name): str(value) for name, value in found.items()}
    except (KeyError, ValueError, AttributeError):
        name = kept.raw["metadata"]["name"]
        raise UsageError(
            f"Secret {name} has no {key} that is JSON: put it right, or delete the Secret"
        ) from None


def repository_of(kept: Kept | None) -> dict[str, str]:
    """The options in the repository's file. Raises UsageError if it is none."""
    if kept is None:
        return {}
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    try:
        parser.read_string(kept.data["secrets.conf"])
        return dict(parser["global"])
    except (KeyError, configparser.Error):
        raise UsageError(
            f"Secret {REPOSITORY} has no secrets.conf with a section [global]: put it right"
        ) from None
