"""Kubernetes objects as plain manifests, and how one is registered with Pulumi.

A manifest is a dictionary as in the API's own documentation: what stands in the code is what a
reviewer reads in the rendered file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pulumi

from elsapg.definition import topology as t
from elsapg.settings import Settings

Manifest = dict[str, Any]

INSTANCE_LABEL = "app.kubernetes.io/instance"
# Pulumi would wait for the Service's first endpoint, or the claim's first pod, which come later.
_NO_WAIT = {"pulumi.com/skipAwait": "true"}
# What holds data outlives its manifest, whoever applies it.
KEEP = {
    "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
    "kustomize.toolkit.fluxcd.io/prune": "disabled",
}


@dataclass(frozen=True)
class Place:
    """Where and as what a stack is placed: everything that no secret is part of."""

    stack: str
    settings: Settings
    images: Mapping[str, str]
    opts: pulumi.ResourceOptions = field(default_factory=pulumi.ResourceOptions)

    @property
    def namespace(self) -> str:
        return t.namespace(self.stack, self.settings)

    def labels(self, component: str | None = None) -> dict[str, str]:
        """Labels of every object; selectors name fewer of them (`selector`)."""
        return {
            **selector(component),
            INSTANCE_LABEL: self.stack,
            "app.kubernetes.io/managed-by": "elsapg",
        }

    def manifest(
        self,
        api: str,
        kind: str,
        name: str,
        component: str | None = None,
        annotations: Mapping[str, str] | None = None,
        **rest: Any,
    ) -> Manifest:
        """A namespaced object of the stack."""
        noted = {**(_NO_WAIT if kind in ("Service", "PersistentVolumeClaim") else {})}
        noted |= annotations or {}
        metadata = {"name": name, "namespace": self.namespace, "labels": self.labels(component)}
        if noted:
            metadata["annotations"] = noted
        return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}


def selector(component: str | None) -> dict[str, str]:
    """Labels that select a component's pods. The namespace is the stack's own, and a tool of
    GitOps may claim the instance's label for itself: it is not among them."""
    labels = {"app.kubernetes.io/name": t.POD_LABELS["app.kubernetes.io/name"]}
    return labels | ({"app.kubernetes.io/component": component} if component else {})


def digest(value: object) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


class Component(pulumi.ComponentResource):
    """A part of the stack: registers manifests as its children."""

    def __init__(self, name: str, place: Place, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(
            f"elsapg:kubernetes:{type(self).__name__}",
            name,
            None,
            pulumi.ResourceOptions.merge(place.opts, opts),
        )
        self.made: dict[str, pulumi.Resource] = {}

    def add(
        self,
        manifest: Manifest,
        opts: pulumi.ResourceOptions | None = None,
        name: str | None = None,
    ) -> pulumi.Resource:
        """Register one object. Its logical name is its kind and name, unless `name` is given."""
        logical = name or f"{manifest['kind'].lower()}-{manifest['metadata']['name']}"
        child = pulumi.ResourceOptions(parent=self)
        resource = register(logical, manifest, pulumi.ResourceOptions.merge(child, opts))
        self.made[logical] = resource
        return resource

    def done(self) -> None:
        """To be called once all children are registered."""
        self.register_outputs({})


def register(
    name: str, manifest: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None
) -> pulumi.Resource:
    """A manifest as a resource of the official provider, of the class that it has for the kind."""
    values = {_snake(k): v for k, v in manifest.items() if k not in ("apiVersion", "kind")}
    made = _class(manifest["apiVersion"], manifest["kind"])
    resource: pulumi.Resource = made(name, opts=opts, **values)
    return resource


@functools.cache
def _class(api: str, kind: str) -> Any:
    group, _, version = api.rpartition("/")
    # Imported by name: all of the provider's API together takes seconds.
    name = (group or "core").removesuffix(".k8s.io").partition(".")[0]
    if "." in group and not group.endswith(".k8s.io"):
        custom = importlib.import_module("pulumi_kubernetes.apiextensions").CustomResource
        return functools.partial(custom, api_version=api, kind=kind)
    return getattr(importlib.import_module(f"pulumi_kubernetes.{name}.{version}"), kind)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
