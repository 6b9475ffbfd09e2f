"""`elsapg render`: goldens, the same bytes every time, and nothing touched that it did not write.

After a wanted change: `pytest tests/unit/test_render.py --snapshot-update`, and read the diff: it
is what the change does to production.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pulumi.runtime import settings as pulumi_settings

from elsapg import stackfile
from elsapg.cli import main
from elsapg.definition.files import tls_secret
from elsapg.definition.secrets import certificate_names
from elsapg.errors import UsageError
from elsapg.services import render as service
from elsapg.services.render import Recorded, file_name
from elsapg.targets.kubernetes import secret_objects
from tests.unit import test_program
from tests.unit.kubernetes_stacks import (
    LEAST,
    OTHERS,
    STACKS,
    Manifest,
    digests,
    merged,
    project,
    recorded,
    rendered,
    result,
    shared_project,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return project(tmp_path / "project", {"least": LEAST})


def texts(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in folder.iterdir()}


# -- goldens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ["staging", "production"])
def test_golden(stack: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if request.config.getoption("update_snapshots"):
        service.write(shared_project(), stack, GOLDEN / stack)
    service.write(shared_project(), stack, tmp_path / "out")
    assert texts(tmp_path / "out") == texts(GOLDEN / stack)


def test_a_change_shows_in_the_files_that_it_concerns(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    service.write(root, "least", out)
    before = texts(out)
    project(root, {"least": merged(LEAST, {"postgres": {"volume_size": "30Gi"}})})
    done = service.write(root, "least", out)
    # Growth is a change of the claims: never of the StatefulSet, which could not take it.
    assert set(done.changed) == {f"05-persistentvolumeclaim-data-pg-{i}.yaml" for i in (1, 2)}
    assert not done.removed
    after = texts(out)
    assert {f for f in after if after[f] != before[f]} == set(done.changed)


# -- the folder --------------------------------------------------------------------------------


def test_two_runs_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    service.write(root, "least", tmp_path / "one")
    again = service.write(root, "least", tmp_path / "one")
    service.write(root, "least", tmp_path / "two")
    assert not again.changed and not again.removed
    assert texts(tmp_path / "one") == texts(tmp_path / "two")


def test_what_is_gone_is_removed_and_nothing_else(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    project(root, {"least": merged(LEAST, {"postgres": {"replicas": 2}})})
    first = service.write(root, "least", out)
    (out / "kustomization.yaml").write_text("resources: []\n", encoding="utf-8")
    (out / "06-service-mine.yaml").write_text("{}\n", encoding="utf-8")
    project(root, {"least": LEAST})
    done = service.write(root, "least", out)
    third = {f for f in first.changed if "pg-3" in f} | {
        f for f in first.changed if f.startswith("09-job-")
    }
    assert set(done.removed) == third
    assert {"kustomization.yaml", "06-service-mine.yaml"} <= texts(out).keys()
    # What is there is what the list says, and the two of others.
    listed = set(json.loads((out / ".elsapg-rendered").read_text(encoding="utf-8"))["files"])
    others = {".elsapg-rendered", "kustomization.yaml", "06-service-mine.yaml"}
    assert texts(out).keys() == listed | others


def test_a_file_of_somebody_else_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "01-role-pg.yaml").write_text("mine\n", encoding="utf-8")
    with pytest.raises(UsageError, match="was not written by `elsapg render`"):
        service.write(root, "least", out)
    assert texts(out) == {"01-role-pg.yaml": "mine\n"}


def test_the_list_of_files_leads_nowhere_else(root: Path, tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.yaml"
    out.mkdir()
    victim.write_text("precious\n", encoding="utf-8")
    index = {"stack": "least", "files": ["../victim.yaml", str(victim), "kustomization.yaml"]}
    (out / ".elsapg-rendered").write_text(json.dumps(index), encoding="utf-8")
    (out / "kustomization.yaml").write_text("mine\n", encoding="utf-8")
    assert service.write(root, "least", out).removed == ()
    assert victim.exists() and (out / "kustomization.yaml").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stack": "least"}', "\x00"])
def test_a_list_that_is_none_stops_it(root: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".elsapg-rendered").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="render elsewhere"):
        service.write(root, "least", out)


def test_another_stacks_folder_is_refused(tmp_path: Path) -> None:
    service.write(shared_project(), "least", tmp_path / "out")
    with pytest.raises(UsageError, match="manifests of stack 'least'"):
        service.write(shared_project(), "staging", tmp_path / "out")


def test_the_order_of_names_is_the_order_to_apply() -> None:
    kinds = [m["kind"] for m in rendered("production").values()]
    assert kinds[0] == "Namespace"
    last_of = {kind: len(kinds) - 1 - kinds[::-1].index(kind) for kind in kinds}
    first_of = {kind: kinds.index(kind) for kind in kinds}
    needed_by = {
        "StatefulSet": ("ServiceAccount", "NetworkPolicy", "ConfigMap", "PersistentVolumeClaim"),
        "Deployment": ("ServiceAccount", "NetworkPolicy", "ConfigMap", "Service"),
        "Job": ("ConfigMap", "StatefulSet"),
    }
    for kind, earlier in needed_by.items():
        assert all(last_of[e] < first_of[kind] for e in earlier), kind


def test_a_docker_stack_has_no_manifests(tmp_path: Path) -> None:
    root = project(tmp_path, {"local": {"target": "docker"}})
    with pytest.raises(UsageError, match="takes no manifests: `elsapg up --stack local`"):
        service.write(root, "local", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, r"does not exist.*`elsapg images push --stack least` makes them"),
        ("postgres: sha256:12\n", "postgres = 'sha256:12' is no digest"),
        (digests().replace("runner", "walker"), "runner = None is no digest"),
        ("[]", "postgres = None is no digest"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_images_without_digests_are_refused(
    root: Path, tmp_path: Path, text: str | None, told: str
) -> None:
    path = root / "stacks/images.least.yaml"
    if text is None:
        path.unlink()
    else:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=told):
        service.write(root, "least", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_wrote_and_which_secrets_are_needed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ELSAPG_ROOT", str(root))
    out = str(tmp_path / "out")
    assert main(["render", "--stack", "least", "--out", out]) == 0
    told = capsys.readouterr().out
    assert f"written  {out}/08-statefulset-pg.yaml" in told
    assert "tls-pgbouncer-auth     kubernetes.io/tls" in told
    assert "elsapg secrets apply --stack least" in told
    assert main(["render", "--stack", "least", "--out", out]) == 0
    assert f"{out} is as it should be" in capsys.readouterr().out
    assert main(["render", "--stack", "absent", "--out", out]) == 2
    assert main(["render", "--stack", "least", "--out", str(root / "Pulumi.yaml")]) in (2, 6)


# -- the same as `up` --------------------------------------------------------------------------


@functools.cache
def sent_by_up(stack: str) -> list[Manifest]:
    """What the engine gets from the program in a real run: not a preview, with real outputs."""
    root = shared_project()
    run = test_program.run(stackfile.read(root, stack), stack, root)
    return [
        service.whole(r.inputs) for r in run.resources.values() if r.type.startswith("kubernetes:")
    ]


@pytest.mark.parametrize("stack", STACKS)
def test_up_sends_what_render_wrote(stack: str) -> None:
    found = sent_by_up(stack)
    plain = {file_name(m): m for m in found if m["kind"] != "Secret"}
    assert plain == rendered(stack)
    # And beside it the Secrets, where they are Pulumi's: those that render says are missing.
    secrets = {m["metadata"]["name"]: m["type"] for m in found if m["kind"] == "Secret"}
    settings = stackfile.read(shared_project(), stack)
    by_pulumi = settings.kubernetes.secrets == "pulumi"
    assert secrets == (dict(result(stack).missing) if by_pulumi else {})


def test_up_gives_the_secrets_their_values() -> None:
    found = {
        m["metadata"]["name"]: m["stringData"] for m in sent_by_up("least") if m["kind"] == "Secret"
    }
    assert json.loads(found["roles"]["roles.json"])["elsa_app"] == "STASHED-password-elsa_app"
    assert "repo1-cipher-pass=STASHED-repository-cipher\n" in found["repository"]["secrets.conf"]
    assert "repo1-s3-key=STASHED-s3-access-key\n" in found["repository"]["secrets.conf"]
    assert found["encryption-keys"] == {"k1": "STASHED-encryption-key-k1"}
    assert found["tls-pg"] == {
        "tls.crt": "CERTIFICATE-certificate-pg",
        "tls.key": "PRIVATE-KEY-certificate-pg",
        "ca.crt": "CERTIFICATE-ca",
    }
    # The CA's key is in Pulumi's state alone.
    assert "ca-key" not in found
    assert "PRIVATE-KEY-ca" not in json.dumps(found)


def test_up_marks_every_secret_as_one() -> None:
    root = shared_project()
    run = test_program.run(stackfile.read(root, "least"), "least", root)
    for resource in run.resources.values():
        for marker in ("STASHED-", "PRIVATE-KEY-"):
            assert marker not in resource.clear, resource.name
    exports = run.exports
    assert test_program.is_secret(exports["passwords"])
    assert exports["pools"] == [{"host": "pgbouncer.elsapg-least.svc", "port": 6432}]


def test_s3_keys_come_from_the_environment_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    root = shared_project()
    settings = stackfile.read(root, "least")
    kept = test_program.run(settings, "least", root).resources["s3-secret-key"]
    assert (kept.inputs["input"], kept.ignore_changes) == ("", ["input"])
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", "GIVEN")
    given = test_program.run(settings, "least", root).resources["s3-secret-key"]
    assert (given.inputs["input"], given.ignore_changes) == ("GIVEN", [])
    assert test_program.is_secret(given.wire["input"])


def test_s3_keys_that_nobody_gave_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = test_program.Made.outputs

    def nothing(type_: str, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"input": ""} if name.startswith("s3-") else outputs(type_, name, inputs)

    monkeypatch.setattr(test_program.Made, "outputs", staticmethod(nothing))
    root = shared_project()
    with pytest.raises(Exception, match="ELSAPG_S3_ACCESS_KEY"):
        test_program.run(stackfile.read(root, "least"), "least", root)
    # What was still to be registered must not go on in the next test's run.
    loop = asyncio.get_event_loop()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    pulumi_settings.SETTINGS.outputs.clear()
    pulumi_settings.SETTINGS.rpc_manager.clear()


# -- who makes which secret --------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
def test_every_secret_is_made_by_one(stack: str) -> None:
    settings = stackfile.read(shared_project(), stack)
    place = secret_objects.Place(stack, settings, {})
    missing = result(stack).missing
    external = {
        m["metadata"]["name"] for m in rendered(stack).values() if m["kind"] == "ExternalSecret"
    }
    signed = {
        m["spec"]["secretName"] for m in rendered(stack).values() if m["kind"] == "Certificate"
    } - {"ca-key"}
    made = [*missing, *external, *signed]
    assert sorted(made) == sorted(secret_objects.needed(place))
    # They are those that the pods mount, and the keys for applications.
    mounted = {
        source["secret"]["name"]
        for manifest in rendered(stack).values()
        for text in [json.dumps(manifest)]
        if '"projected"' in text
        for source in _sources(manifest)
        if "secret" in source
    }
    pairs = {tls_secret(pair) for pair in certificate_names(settings, "n")}
    assert mounted == {"roles", "repository", *pairs}


def _sources(value: Any) -> list[Manifest]:
    if isinstance(value, dict):
        if "projected" in value:
            return list(value["projected"]["sources"])
        return [s for v in value.values() for s in _sources(v)]
    return [s for v in value for s in _sources(v)] if isinstance(value, list) else []


def test_no_pod_mounts_the_cas_key() -> None:
    for stack in STACKS:
        for manifest in rendered(stack).values():
            names = [s.get("secret", {}).get("name") for s in _sources(manifest)]
            assert secret_objects.CA_KEY not in names


def test_an_external_secret_has_the_files_with_names_in_the_values_places() -> None:
    roles = rendered("production")["03-externalsecret-roles.yaml"]["spec"]
    template = json.loads(roles["target"]["template"]["data"]["roles.json"])
    keys = {item["secretKey"]: item["remoteRef"]["key"] for item in roles["data"]}
    assert template["elsa_app"] == "{{ .password_elsa_app }}"
    assert keys["password_elsa_app"] == "teams/elsa/production/password-elsa_app"
    # Every name in a template has its value in the store, and the other way round.
    for stack in ("production", "others"):
        for manifest in rendered(stack).values():
            if manifest["kind"] == "ExternalSecret":
                text = json.dumps(manifest["spec"]["target"]["template"]["data"])
                named = {item["secretKey"] for item in manifest["spec"]["data"]}
                assert set(re.findall(r"\{\{ \.(\w+) \}\}", text)) == named


def test_what_stands_for_a_secret_never_reaches_a_file() -> None:
    leaking = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
    with pytest.raises(AssertionError, match="a secret in ConfigMap x"):
        service._files([{**leaking, "data": {"a": service._PLACEHOLDER}}])
    with pytest.raises(AssertionError, match="a secret in ConfigMap x"):
        service._files([{**leaking, "data": {service._SIGNATURE: "1"}}])


# -- how the resources hang together -----------------------------------------------------------


def by_key(stack: str) -> dict[str, Recorded]:
    found = {}
    for resource in recorded(stack):
        key = resource.urn.rpartition("::")[2]
        kind = resource.type.rpartition(":")[2]
        found[f"{kind} {key}"] = resource
    return found


COMPONENTS = {"Foundation", "SecretObjects", "Network", "Nodes", "Poolers", "Runner"}


def test_components_have_our_types_and_all_objects_are_in_one() -> None:
    found = by_key("production")
    types = {r.type for r in found.values() if r.type.startswith("elsapg:")}
    assert types == {f"elsapg:kubernetes:{name}" for name in (*COMPONENTS, "Monitoring")}
    urns = {r.urn: r for r in found.values()}
    for resource in found.values():
        if resource.type.startswith("kubernetes:") or (
            resource.manifest and ":providers:" not in resource.type
        ):
            assert urns[resource.parent].type.startswith("elsapg:kubernetes:"), resource.name


def test_logical_names_are_free_of_the_stacks() -> None:
    assert not [r.name for r in recorded("production") if "production" in r.name]


def test_what_holds_data_or_secrets_is_protected() -> None:
    kept = {name for name, r in by_key("least").items() if r.protect}
    claims = {f"PersistentVolumeClaim persistentvolumeclaim-data-pg-{i}" for i in (1, 2)}
    secrets = {f"Secret secret-{name}" for name in secret_objects.VALUES}
    stashes = {name for name in by_key("least") if name.startswith("Stash ")}
    authority = {"CertificateAuthority ca"}
    assert kept == {"Namespace namespace"} | claims | secrets | stashes | authority
    assert not [name for name, r in by_key("others").items() if r.protect]


def reaches(stack: str, start: str) -> set[str]:
    """All that must be there before a resource is made; a component stands for its children."""
    found = by_key(stack)
    names = {r.urn: name for name, r in found.items()}
    reached: set[str] = set()
    left = [start]
    while left:
        resource = found[left.pop()]
        waits = {*resource.depends_on, resource.parent} - {""}
        for urn in waits:
            if urn in names and names[urn] not in reached:
                reached.add(names[urn])
                left.append(names[urn])
    return reached


def test_order() -> None:
    nodes = reaches("least", "StatefulSet statefulset-pg")
    assert "Namespace namespace" in nodes
    assert {"ConfigMap configmap-pg", "Service service-pg"} <= nodes
    assert {f"PersistentVolumeClaim persistentvolumeclaim-data-pg-{i}" for i in (1, 2)} <= nodes
    # No pod before its secrets, nor before the network is closed.
    assert {"Secret secret-tls-pg", "NetworkPolicy networkpolicy-deny-all"} <= nodes
    bootstrap = reaches("least", "Job job-bootstrap")
    assert {"StatefulSet statefulset-pg", "Secret secret-roles"} <= bootstrap
    assert "StatefulSet statefulset-pg" not in reaches("least", "Deployment deployment-pgbouncer")
    for name, resource in by_key("least").items():
        if resource.manifest and "namespace" in resource.manifest["metadata"]:
            assert "Namespace namespace" in reaches("least", name), name


def test_a_whole_stack_can_be_registered_in_every_way() -> None:
    """Also where somebody else makes secrets and certificates, and nothing is protected."""
    assert stackfile.load(OTHERS, "test").kubernetes.cert_manager
    text = yaml.safe_dump_all(rendered("others").values())
    assert "elsa-db" in text and "elsapg-others" not in text
