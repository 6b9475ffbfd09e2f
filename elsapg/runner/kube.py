"""The API server, as a pod of the stack may ask it: two calls, standard library only.

The images need no client library for them. The token and the CA are the pod's own, as mounted.
"""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 5


class KubeError(Exception):
    """The API server did not do it. `status`: its HTTP status, or None if it was not reached."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


def get(resource: str, group: str = "api/v1") -> dict[str, Any]:
    """One object of this pod's namespace, such as "pods/pg-1". Raises KubeError."""
    return _call("GET", resource, group)


def merge(resource: str, patch: dict[str, Any], group: str = "api/v1") -> dict[str, Any]:
    """Merge `patch` into an object (RFC 7396) and return the object. Raises KubeError."""
    return _call("PATCH", resource, group, patch)


def _call(method: str, resource: str, group: str, body: Any = None) -> dict[str, Any]:
    try:
        namespace = (ACCOUNT / "namespace").read_text(encoding="utf-8")
        # Read anew each time: the kubelet renews it.
        token = (ACCOUNT / "token").read_text(encoding="utf-8")
        context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        # A cluster's CA is not ours to choose, and many have no key identifiers.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    except (OSError, KeyError) as error:
        raise KubeError(f"this is no pod with an account: {error}") from None
    where = f"/{group}/namespaces/{namespace}/{resource}"
    request = urllib.request.Request(
        f"https://{f'[{host}]' if ':' in host else host}:{port}{where}",
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/merge-patch+json",
        },
        method=method,
    )
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            found: dict[str, Any] = json.load(response)
            return found
    except urllib.error.HTTPError as error:
        raise KubeError(
            f"the API server answers {error.code} to {method} {where}", error.code
        ) from None
    except (OSError, ValueError) as error:
        raise KubeError(f"the API server does not answer {method} {where}: {error}") from None
