"""What a pod asks of the API server: over a real TLS server, and what is made of the answers."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from elsapg.definition import topology as t
from elsapg.errors import ElsapgError
from elsapg.pki import make_ca, make_certificate
from elsapg.runner import kube, relabel, rollout

CA = make_ca("elsapg test", 10)
PODS = "/api/v1/namespaces/elsapg-test/pods"
STATEFUL_SET = "/apis/apps/v1/namespaces/elsapg-test/statefulsets/pg"


class ApiServer:
    """Objects by path; `status` answers everything with a refusal."""

    def __init__(self, folder: Path) -> None:
        self.objects: dict[str, Any] = {}
        self.status = 200
        self.patched: list[tuple[str, Any]] = []
        self.tokens: set[str | None] = set()
        # What an object becomes, one step per look.
        self.next: dict[str, list[Any]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, body: Any) -> None:
                outer.tokens.add(self.headers["Authorization"])
                path = urlsplit(self.path).path
                found = outer.next.get(path)
                if found:
                    outer.objects[path] = found.pop(0)
                status = outer.status if outer.status != 200 or path in outer.objects else 404
                if body is not None and status == 200:
                    assert self.headers["Content-Type"] == "application/merge-patch+json"
                    outer.patched.append((path, body))
                self.send_response(status)
                self.end_headers()
                value = outer.objects.get(path)
                if isinstance(value, list):
                    wanted = parse_qs(urlsplit(self.path).query)["labelSelector"][0]
                    labels = dict(pair.split("=") for pair in wanted.split(","))
                    value = {"items": [p for p in value if labels.items() <= _labels(p).items()]}
                self.wfile.write(json.dumps(value).encode())

            def do_GET(self) -> None:
                self._answer(None)

            def do_PATCH(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def _labels(pod: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = pod["metadata"]["labels"]
    return found


def _pod(name: str, role: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {t.SCOPE_LABEL: t.SCOPE, t.ROLE_LABEL: role}}}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    pair = make_certificate(
        "kubernetes", ["127.0.0.1", "localhost"], 5, CA["certificate"], CA["private_key"]
    )
    (tmp_path / "tls.crt").write_text(pair["certificate"])
    (tmp_path / "tls.key").write_text(pair["private_key"])
    (tmp_path / "ca.crt").write_text(CA["certificate"])
    (tmp_path / "token").write_text("of-this-pod")
    (tmp_path / "namespace").write_text("elsapg-test")
    found = ApiServer(tmp_path)
    monkeypatch.setattr(kube, "ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(found.server.server_port))
    monkeypatch.setattr("socket.gethostname", lambda: "pg-2")
    monkeypatch.setenv(rollout.STATEFUL_SET, "pg")
    yield found
    found.server.shutdown()
    found.server.server_close()


# -- the call --------------------------------------------------------------------------------


def test_an_object_is_got_with_this_pods_token(api: ApiServer) -> None:
    api.objects[f"{PODS}/pg-1"] = {"kind": "Pod"}
    assert kube.get("pods/pg-1") == {"kind": "Pod"}
    assert api.tokens == {"Bearer of-this-pod"}


def test_another_servers_certificate_is_not_believed(api: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text(make_ca("elsapg test", 10)["certificate"])
    with pytest.raises(kube.KubeError, match=r"does not answer GET .*CERTIFICATE_VERIFY_FAILED"):
        kube.get("pods/pg-1")
    assert api.tokens == set()


def test_outside_of_a_pod_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "ACCOUNT", tmp_path)
    with pytest.raises(kube.KubeError, match="this is no pod with an account"):
        kube.get("pods/pg-1")


# -- relabel ---------------------------------------------------------------------------------


def test_a_new_primary_takes_the_label_off_the_old_one(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    pods = [_pod("pg-1", "primary"), _pod("pg-2", "primary"), _pod("pg-3", "replica")]
    api.objects |= {PODS: pods, f"{PODS}/pg-1": pods[0]}
    assert relabel.main(["on_role_change", "primary", t.SCOPE]) == 0
    assert api.patched == [(f"{PODS}/pg-1", {"metadata": {"labels": {t.ROLE_LABEL: None}}})]
    assert capsys.readouterr().out == "relabel: pg-1 no longer leads\n"


@pytest.mark.parametrize("role", ["replica", "demoted", "standby_leader"])
def test_who_does_not_lead_touches_nobody(api: ApiServer, role: str) -> None:
    api.objects[PODS] = [_pod("pg-1", "primary")]
    assert relabel.main(["on_role_change", role, t.SCOPE]) == 0
    assert api.tokens == set()


def test_a_refusal_is_told_in_patronis_log(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    api.status = 403
    assert relabel.main(["on_role_change", "primary", t.SCOPE]) == 1
    assert "relabel: the API server answers 403 to GET" in capsys.readouterr().err


def test_it_knows_the_labels_of_the_definition() -> None:
    assert (relabel.SCOPE_LABEL, relabel.ROLE_LABEL) == (t.SCOPE_LABEL, t.ROLE_LABEL)


# -- rollout ---------------------------------------------------------------------------------


def _set(new: int, revision: str = "b", generation: int = 2, observed: int = 2) -> dict[str, Any]:
    return {
        "metadata": {"generation": generation},
        "spec": {"replicas": 2},
        "status": {
            "observedGeneration": observed,
            "currentRevision": revision,
            "updateRevision": "b",
            "updatedReplicas": new,
        },
    }


@pytest.mark.parametrize(
    ("stateful_set", "over"),
    [
        (_set(2), True),
        (_set(1, "a"), False),
        # All are new, but the last one has not been ready for long enough.
        (_set(2, "a"), False),
        # The controller has not seen the change yet.
        (_set(2, observed=1), False),
        ({"metadata": {"generation": 1}, "spec": {"replicas": 2}}, False),
    ],
)
def test_when_a_replacement_is_over(stateful_set: dict[str, Any], over: bool) -> None:
    assert rollout.is_over(stateful_set) is over


def test_it_waits_until_the_last_pod_is_new(api: ApiServer) -> None:
    api.next[STATEFUL_SET] = [_set(0, "a"), _set(1, "a"), _set(2)]
    rollout.wait()
    assert api.next[STATEFUL_SET] == []


def test_a_replacement_that_hangs_is_told(api: ApiServer) -> None:
    api.objects[STATEFUL_SET] = _set(1, "a")
    with pytest.raises(
        TimeoutError, match="statefulset/pg is still replacing its pods: 1 of 2 are"
    ):
        rollout.wait(patience=0)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_waiting_does_not_mend_is_said_at_once(api: ApiServer, status: int) -> None:
    api.status = status
    with pytest.raises(ElsapgError, match=rf"answers {status} to GET .*RoleBinding runner"):
        rollout.wait()


def test_an_api_server_that_is_away_is_waited_for(api: ApiServer) -> None:
    api.status = 503
    with pytest.raises(TimeoutError, match="answers 503"):
        rollout.wait(patience=0)


def test_without_kubernetes_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rollout.STATEFUL_SET, raising=False)
    rollout.wait()
