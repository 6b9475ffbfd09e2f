"""The kubernetes target's decisions: what a change of the stack does to which object."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from elsapg import stackfile
from elsapg.definition import topology as t
from elsapg.definition.files import files_for, task_files
from elsapg.definition.secrets import certificate_names
from elsapg.errors import SettingsError
from elsapg.targets.kubernetes import images, network, nodes, poolers, runner
from elsapg.targets.kubernetes.objects import Place
from tests.unit import kubernetes_policy as policy
from tests.unit.fakes import fake_secrets
from tests.unit.kubernetes_stacks import LEAST, Manifest, merged, rendered, settings

DIGESTS = {name: f"registry.example.com/elsapg-{name}@sha256:{'a' * 64}" for name in images.IMAGES}


def place(*changes: Mapping[str, Any], digest: str = "a") -> Place:
    found = {name: f"{image[:-64]}{digest * 64}" for name, image in DIGESTS.items()}
    return Place("some", settings(*changes), found)


def config(unit: str, path: str, *changes: Mapping[str, Any]) -> str:
    found = settings(*changes)
    [text] = [f.content for f in files_for(unit, found, fake_secrets(found)) if f.path == path]
    return text


# -- the definition ----------------------------------------------------------------------------


def test_all_units_of_a_kind_have_the_same_files() -> None:
    """They are made from one template."""
    found = settings({"postgres": {"replicas": 3}, "pooler": {"instances": 2}})
    secrets = fake_secrets(found)
    kinds = (t.node_names(found), t.pooler_names(found), map(t.agent_name, t.node_names(found)))
    for kind in kinds:
        first, *others = [files_for(unit, found, secrets) for unit in kind]
        assert others and all(files == first for files in others)


def test_units() -> None:
    names = [u.name for u in t.units(settings())]
    assert names == ["pg-1", "pg-2", "pg-1-agent", "pg-2-agent", "pgbouncer-1", "pgbouncer-2"]


def test_plain_files_hold_no_secret() -> None:
    found = settings()
    secrets = fake_secrets(found)
    everything = [files_for(u.name, found, secrets) for u in t.units(found)]
    everything += [task_files(k.name, found, secrets) for k in t.tasks(found)]
    everything.append(files_for("runner", found, secrets))
    markers = ("PASSWORD-", "PRIVATE-KEY-", "S3-", "REPOSITORY-CIPHER")
    held = set()
    for file in itertools.chain.from_iterable(everything):
        if any(marker in file.content for marker in markers):
            assert file.secret, file.path
            held.add(file.kept_in)
    assert {"roles", "repository", "tls-pg", "tls-postgres"} <= held


def test_patroni_keeps_its_state_in_the_api_and_the_role_in_a_label() -> None:
    patroni = yaml.safe_load(config("pg-1", "patroni.yml"))
    assert patroni["kubernetes"]["use_endpoints"] is False
    assert patroni["kubernetes"]["role_label"] == "role"
    assert not {"etcd3", "name"} & patroni.keys()
    assert "connect_address" not in {**patroni["restapi"], **patroni["postgresql"]}
    # What selects its pods are labels that they have.
    labels = nodes._pod(place())["metadata"]["labels"]
    wanted = {**patroni["kubernetes"]["labels"], patroni["kubernetes"]["scope_label"]: "elsa"}
    assert wanted.items() <= labels.items()
    # Patroni's own: who declares it would undo a failover.
    assert "role" not in labels


def test_wal_on_a_volume_of_its_own() -> None:
    change = {"postgres": {"wal_volume_size": "5Gi"}}
    patroni = yaml.safe_load(config("pg-1", "patroni.yml", change))
    where = {"waldir": "/var/lib/postgresql-wal/wal"}
    assert where in patroni["bootstrap"]["initdb"] and where in patroni["postgresql"]["basebackup"]
    [claim] = [m for m in nodes._stateful_set(place(change))["spec"]["volumeClaimTemplates"]
               if m["metadata"]["name"] == "wal"]  # fmt: skip
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"
    for container in nodes._pod(place(change))["spec"]["containers"]:
        paths = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        assert paths["wal"] == "/var/lib/postgresql-wal"


def test_the_read_only_door_falls_back_to_the_primary() -> None:
    """By a HAProxy in the pool's own pod, whose ports are those of the Services that it asks."""
    assert "elsa_runtime_readonly = host=replica port=5433" in config(
        "pgbouncer-1", "pgbouncer.ini"
    )
    spec = poolers._pod(place())["spec"]
    assert spec["hostAliases"] == [{"ip": "127.0.0.2", "hostnames": ["replica"]}]
    assert f"bind 127.0.0.2:{t.REPLICA_PORT}\n" in config("pgbouncer-1", "readers.cfg")
    asked = re.findall(r"server \S+ (\w+)\.\$\{ELSAPG_DOMAIN\}:(\d+) .*?(backup)?$",
                       config("pgbouncer-1", "readers.cfg"), re.MULTILINE)  # fmt: skip
    assert asked == [("replica", "5433", ""), ("primary", "5432", "backup")]
    services = {s["metadata"]["name"]: s["spec"] for s in nodes._services(place())}
    # Pools of an earlier release ask for both by one name, at one port.
    assert "replica,primary" in certificate_names(settings(), "there")["pg"]
    for name, port, _ in (*asked, ("primary", "5433", "")):
        assert int(port) in {p["port"] for p in services[name]["ports"]}


def test_what_leads_readers_has_no_key() -> None:
    spec = poolers._pod(place())["spec"]
    [readers] = [c for c in spec["containers"] if c["name"] == "readers"]
    mounted = {m["name"] for m in readers["volumeMounts"]}
    sources = [
        source
        for volume in spec["volumes"]
        if volume["name"] in mounted
        for source in volume.get("projected", {}).get("sources", [])
    ]
    assert [list(s) for s in sources] == [["configMap"]]
    assert sources[0]["configMap"]["items"] == [{"key": "readers.cfg", "path": "readers.cfg"}]


@pytest.mark.parametrize(
    ("archive", "lines", "absent"),
    [
        (
            {"endpoint": "s3.example.com"},
            ["repo1-s3-endpoint=s3.example.com", "repo1-storage-port=443"],
            ["repo1-storage-ca-file", "key-type"],
        ),
        (
            {"endpoint": "s3.x:9000", "uri_style": "host", "credentials": "web-id"},
            ["repo1-storage-port=9000", "repo1-s3-uri-style=host", "repo1-s3-key-type=web-id"],
            ["repo1-storage-ca-file"],
        ),
        (
            {"ca": "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----"},
            ["repo1-storage-ca-file=/etc/elsapg/s3-ca.crt"],
            ["tls/ca.crt\nrepo1"],
        ),
    ],
)
def test_the_repository(archive: dict[str, str], lines: list[str], absent: list[str]) -> None:
    for unit in ("pg-1", "pg-1-agent", "runner"):
        text = config(unit, "pgbackrest.conf", {"archive": archive})
        assert all(f"\n{line}\n" in text for line in lines), unit
        assert not [word for word in absent if word in text], unit


def test_certificates_have_the_names_by_which_units_are_reached() -> None:
    found = settings({"kubernetes": {"pool_names": ["pool.example.com"]}})
    names = certificate_names(found, "there")
    services = {s["metadata"]["name"] for s in nodes._services(place())}
    assert services <= set(names["pg"])
    assert {"pgbouncer", "pgbouncer.there.svc", "pool.example.com"} <= set(names["pgbouncer"])


# -- objects -----------------------------------------------------------------------------------


def test_names_are_those_of_the_docker_target() -> None:
    """So that the templates need no second version."""
    made = {s["metadata"]["name"]: s for s in nodes._services(place())}
    for name in ("primary", "replica", "pg-1", "pg-2", "pg-1-agent", "pg-2-agent"):
        assert name in made
    pods = nodes._stateful_set(place())
    assert pods["metadata"]["name"] == "pg" and pods["spec"]["ordinals"] == {"start": 1}
    assert pods["spec"]["replicas"] == len(t.node_names(settings()))


def test_the_roles_services_follow_patronis_label() -> None:
    made = {s["metadata"]["name"]: s["spec"] for s in nodes._services(place())}
    assert made["primary"]["selector"]["role"] == "primary"
    assert made["replica"]["selector"]["role"] == "replica"
    for name in ("pg", "pg-1", "pg-1-agent"):
        assert "role" not in made[name]["selector"]
        assert made[name]["publishNotReadyAddresses"] is True


def test_no_token_but_patronis() -> None:
    postgres, agent = nodes._pod(place())["spec"]["containers"]
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert path in {m["mountPath"] for m in postgres["volumeMounts"]}
    assert path not in {m["mountPath"] for m in agent["volumeMounts"]}


def test_the_runner_may_look_at_the_nodes_and_no_more() -> None:
    manifests = rendered("least")
    assert manifests["01-role-runner.yaml"]["rules"] == [
        {
            "apiGroups": ["apps"],
            "resources": ["statefulsets"],
            "resourceNames": ["pg"],
            "verbs": ["get"],
        }
    ]
    [job] = [m for m in manifests.values() if m["kind"] == "Job"]
    runs = [*job["spec"]["template"]["spec"]["initContainers"]]
    runs += job["spec"]["template"]["spec"]["containers"]
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    with_token = [r["name"] for r in runs if path in {m["mountPath"] for m in r["volumeMounts"]}]
    assert with_token == ["configure"]


def test_patroni_may_change_its_own_configmaps_and_pods_only() -> None:
    rules = rendered("least")["01-role-pg.yaml"]["rules"]
    ours = {m["metadata"]["name"] for m in rendered("least").values() if m["kind"] == "ConfigMap"}
    for rule in rules:
        assert rule["apiGroups"] == [""]
        assert set(rule["resources"]) <= {"configmaps", "pods"}
        if {"patch", "update", "delete", "get"} & set(rule["verbs"]):
            assert rule["resourceNames"]
            assert not ours & set(rule["resourceNames"])
        assert not {"delete", "deletecollection", "*", "update"} & set(rule["verbs"])
    assert "secrets" not in json.dumps(rules)


def template(manifest: Manifest) -> Manifest:
    found: Manifest = manifest["spec"]["template"]
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"postgres": {"volume_size": "200Gi"}},
        {"postgres": {"parameters": {"work_mem": "8MB"}}},
        {"patroni": {"ttl": 30}},
        {"archive": {"retention_days": 9}},
        {"pooler": {"max_client_conn": 2000}},
        {"retention": {"instances_days": 9}},
        {"encryption": {"key_ids": ["k1", "k2"]}},
    ],
)
def test_what_a_reload_can_do_rolls_no_pod(change: dict[str, Any]) -> None:
    assert nodes._stateful_set(place(change)) == nodes._stateful_set(place())
    assert poolers._deployment(place(change)) == poolers._deployment(place())


@pytest.mark.parametrize(
    "change",
    [
        {"postgres": {"memory_mb": 2048}},
        {"postgres": {"cpus": 1}},
        {"kubernetes": {"priority_class": "high"}},
        {"kubernetes": {"anti_affinity": "preferred"}},
    ],
)
def test_what_a_reload_cannot_do_rolls_them(change: dict[str, Any]) -> None:
    assert template(nodes._stateful_set(place(change))) != template(nodes._stateful_set(place()))


def test_what_runs_and_ends_displaces_nobody_and_blocks_nobody() -> None:
    """A Job that cannot start would keep all later ones of its kind from it."""
    important = place({"kubernetes": {"priority_class": "high"}})
    files = files_for("runner", important.settings, fake_secrets(important.settings))
    job = runner._cron_job(important, "dump", ("dump",), "0 2 * * *", files)
    spec = job["spec"]["jobTemplate"]["spec"]
    assert spec["activeDeadlineSeconds"] == t.LONG_S
    pods = [spec["template"], runner.bootstrap_manifest(important)["spec"]["template"]]
    assert not any("priorityClassName" in pod["spec"] for pod in pods)
    assert template(nodes._stateful_set(important))["spec"]["priorityClassName"] == "high"


def test_a_pool_has_memory_for_its_clients() -> None:
    """33 KiB for an idle one by TLS, measured."""

    def mebibytes(clients: int) -> int:
        pool = next(u for u in t.units(settings({"pooler": {"max_client_conn": clients}}))
                    if u.name == "pgbouncer-1")  # fmt: skip
        return pool.memory_mb or 0

    assert mebibytes(1000) == 256
    for clients in (5000, 20_000, 100_000):
        assert mebibytes(clients) * 1024 > 2 * 16 * clients + clients


def test_a_cluster_may_have_its_dns_and_api_server_elsewhere() -> None:
    openshift = {
        "dns_namespaces": ["openshift-dns"],
        "dns_ports": [53, 5353],
        "dns_cidrs": ["172.30.0.10/32"],
        "api_server_ports": [16443],
    }
    found = {m["metadata"]["name"]: m for m in network.policies(place({"kubernetes": openshift}))}
    [rule] = found["dns"]["spec"]["egress"]
    labels = {"kubernetes.io/metadata.name": "openshift-dns"}
    assert rule["to"] == [
        {"namespaceSelector": {"matchLabels": labels}},
        {"ipBlock": {"cidr": "172.30.0.10/32"}},
    ]
    assert {(p["protocol"], p["port"]) for p in rule["ports"]} == set(
        itertools.product(("UDP", "TCP"), (53, 5353))
    )
    for name in ("nodes-to-api-server", "runner-to-api-server"):
        [rule] = found[name]["spec"]["egress"]
        assert rule["ports"] == [{"protocol": "TCP", "port": 16443}]


def test_a_load_balancer_leaves_the_clients_address_for_the_policy() -> None:
    outside = {"pool_service_type": "LoadBalancer", "application_cidrs": ["10.1.0.0/16"]}
    [service, _] = poolers._services(place({"kubernetes": outside}))
    assert service["spec"]["externalTrafficPolicy"] == "Local"
    [inside, _] = poolers._services(place())
    assert "externalTrafficPolicy" not in inside["spec"]


def test_pools_that_leave_slowly_do_so_one_after_the_other() -> None:
    """And have gone before Kubernetes kills them: after 5 s, in which they are still found, 60 for
    their clients, and what runs."""
    slow = {"kubernetes": {"pool_leave_s": 60}, "pooler": {"max_db_connections": 7}}
    spec = poolers._deployment(place(slow))["spec"]
    pod = spec["template"]["spec"]
    assert spec["minReadySeconds"] == 65 and pod["terminationGracePeriodSeconds"] == 120
    hooks = {c["name"]: c["lifecycle"]["preStop"]["exec"]["command"] for c in pod["containers"]}
    assert hooks == {
        "pgbouncer": ["pool-leave", "pgbouncer", "60"],
        "gate": ["pool-leave", "gate"],
        "readers": ["pool-leave", "readers"],
    }
    assert "minReadySeconds" not in poolers._deployment(place())["spec"]


def test_another_image_rolls_them() -> None:
    new, old = nodes._stateful_set(place(digest="b")), nodes._stateful_set(place())
    assert template(new) != template(old)


IMMUTABLE = ("serviceName", "podManagementPolicy", "selector", "volumeClaimTemplates")


@given(
    st.fixed_dictionaries(
        {
            "replicas": st.integers(1, 7),
            "volume_size": st.integers(1, 900).map(lambda n: f"{n}Gi"),
            "memory_mb": st.integers(1024, 65536),
        }
    ),
    st.integers(1, 3),
)
@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_grows_the_statefulset_need_not_be_replaced(
    postgres: dict[str, Any], instances: int
) -> None:
    postgres = {**postgres, "max_wal_senders": 20, "max_replication_slots": 20}
    found = place(
        {"postgres": postgres, "pooler": {"instances": instances, "max_db_connections": 3}}
    )
    manifest = nodes._stateful_set(found)
    for key in IMMUTABLE:
        assert manifest["spec"][key] == nodes._stateful_set(place())["spec"][key]
    for other in (manifest, poolers._deployment(found), *nodes._services(found)):
        for rule in (policy.identity, policy.limits, policy.restricted, policy.mounts):
            assert not list(rule(other))
    sizes = nodes._volumes(found)
    assert sizes == {"data": postgres["volume_size"]}


# -- the bootstrap -----------------------------------------------------------------------------


def job_name(tmp_path: Path, *changes: Mapping[str, Any], digest: str = "a") -> str:
    made = place(*changes, digest=digest)
    return runner.bootstrap_manifest(made)["metadata"]["name"]


@pytest.mark.parametrize(
    "change",
    [
        {"postgres": {"parameters": {"work_mem": "8MB"}}},
        {"postgres": {"replicas": 2}},
        {"retention": {"instances_days": 9}},
        {"archive": {"bucket": "other"}},
    ],
)
def test_the_bootstrap_runs_again_when_what_it_does_changes(
    change: dict[str, Any], tmp_path: Path
) -> None:
    assert job_name(tmp_path, change) != job_name(tmp_path)


def test_the_bootstrap_runs_again_for_another_image(tmp_path: Path) -> None:
    """The SQL is in it."""
    assert job_name(tmp_path, digest="b") != job_name(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"pooler": {"max_client_conn": 2000}},
        {"encryption": {"key_ids": ["k1", "k2"]}},
        {"kubernetes": {"monitoring": True}},
        {"postgres": {"volume_size": "200Gi"}},
    ],
)
def test_the_bootstrap_does_not_run_again_for_anything_else(
    change: dict[str, Any], tmp_path: Path
) -> None:
    assert job_name(tmp_path, change) == job_name(tmp_path)


def test_the_superusers_key_ends_with_the_task_that_needs_it() -> None:
    spec = runner.bootstrap_manifest(place())["spec"]["template"]["spec"]
    secrets = {
        v["name"]: {s["secret"]["name"] for s in v["projected"]["sources"] if "secret" in s}
        for v in spec["volumes"]
        if v["name"].startswith("config-")
    }
    assert secrets == {
        "config-configure": {"tls-postgres"},
        "config-bootstrap": {"tls-postgres", "roles"},
        "config-first-backup": {"tls-backup", "repository"},
    }
    for container in [*spec["initContainers"], *spec["containers"]]:
        mounted = {m["name"] for m in container["volumeMounts"]} & secrets.keys()
        assert mounted == {f"config-{container['name']}"}


# -- the network -------------------------------------------------------------------------------


def ways(*changes: Mapping[str, Any]) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m["spec"] for m in network.policies(place(*changes))}


def test_every_way_between_pods_is_opened_on_both_sides() -> None:
    """Egress of the one is ingress of the other: half an open way is a closed one."""
    sent, taken = set(), set()
    for spec in ways().values():
        me = spec["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/component")
        for rule in spec.get("egress", []):
            for peer in rule.get("to", []):
                if "podSelector" in peer:
                    other = peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                    sent |= {(me, other, p["port"]) for p in rule["ports"]}
        for rule in spec.get("ingress", []):
            for peer in rule["from"]:
                if "podSelector" in peer:
                    other = peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                    taken |= {(other, me, p["port"]) for p in rule["ports"]}
    assert sent == taken == {
        ("pg", "pg", 5432), ("pg", "pg", 8008), ("pg", "pgbouncer", 6500),
        ("pgbouncer", "pg", 5432),
        ("runner", "pg", 5432), ("runner", "pg", 8008), ("runner", "pg", 8432),
        ("runner", "pgbouncer", 6500),
    }  # fmt: skip


def test_nobody_from_outside_gets_in_unless_the_stack_says_so() -> None:
    assert not [n for n in ways() if n.startswith("pools-from")]
    change = {"application_namespaces": ["elsa", "tools"], "application_cidrs": ["10.1.0.0/16"]}
    [rule] = ways({"kubernetes": change})["pools-from-applications"]["ingress"]
    assert [p["port"] for p in rule["ports"]] == [6432]
    assert len(rule["from"]) == 3
    [rule] = ways({"kubernetes": {"monitoring": True}})["nodes-from-monitoring"]["ingress"]
    assert [p["port"] for p in rule["ports"]] == [8008]


def test_no_rule_lets_anybody_in() -> None:
    """An empty `from` would be everybody."""
    for name, spec in ways({"kubernetes": {"monitoring": True}}).items():
        for rule in spec.get("ingress", []):
            assert rule["from"] and rule["ports"], name


def test_the_way_to_s3_and_to_the_api_server() -> None:
    change = {
        "archive": {"endpoint": "s3.x:9000"},
        "kubernetes": {"s3_ports": [7070], "s3_cidrs": ["10.9.0.0/16"],
                       "api_server_cidrs": ["10.2.0.1/32"]},
    }  # fmt: skip
    [rule] = ways(change)["runner-to-s3"]["egress"]
    assert rule == {
        "to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}],
        "ports": [{"protocol": "TCP", "port": p} for p in (9000, 7070)],
    }
    # Patroni, and the task that waits until the nodes' pods are replaced.
    assert [n for n in ways() if "api-server" in n] == [
        "nodes-to-api-server", "runner-to-api-server",
    ]  # fmt: skip
    for who in ("nodes", "runner"):
        [rule] = ways(change)[f"{who}-to-api-server"]["egress"]
        assert rule["to"] == [{"ipBlock": {"cidr": "10.2.0.1/32"}}]


# -- settings ----------------------------------------------------------------------------------


def problems(values: Mapping[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        stackfile.load(dict(values), "test")
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("docker", {"pool_port": 7000}, r"docker.pool_port = 7000: is for the docker target alone"),
        ("etcd", {"members": 3}, "etcd.members = 3: is for the docker target alone"),
        ("kubernetes", {"registry": None}, "kubernetes.registry = None: is needed"),
        ("archive", {"endpoint": None}, "archive.endpoint = None: is needed"),
        ("archive", {"endpoint": "https://s3.x"}, "must be HOST or HOST:PORT without https://"),
        ("archive", {"endpoint": "s3.x:"}, "must be HOST or HOST:PORT"),
        ("archive", {"endpoint": "s3.x:70000"}, "must be HOST or HOST:PORT"),
        ("archive", {"ca": "no"}, "must be one or more certificates in PEM"),
        ("archive", {"ca": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\nPRIVATE KEY"},
         "holds a private key"),
        ("archive", {"second": {"bucket": "other", "endpoint": "https://s3.x"}},
         "must be HOST or HOST:PORT without https://"),
        ("kubernetes", {"secrets": "external"}, "kubernetes.secret_store = None: is needed"),
        ("kubernetes", {"secrets": "external", "secret_store": "Vault/x"},
         "must be SecretStore/NAME or ClusterSecretStore/NAME"),
        ("kubernetes", {"secrets": "external", "secret_store": "x"}, "must be KIND/NAME"),
        ("kubernetes", {"secret_store": "SecretStore/x"}, "is read only where secrets is"),
        ("kubernetes", {"secret_prefix": "x/"}, "is read only where secrets is"),
        ("kubernetes", {"cert_manager_issuer": "x"}, "is read only where cert_manager is true"),
        ("kubernetes", {"s3_cidrs": ["10.0.0.1/8"]}, "'10.0.0.1/8' is no network"),
        ("kubernetes", {"application_namespaces": ["A"]}, "'A' is no name"),
        ("kubernetes", {"application_namespaces": ["a", "a"]}, "'a' is there twice"),
        ("kubernetes", {"pool_leave_s": 60},
         "pooler.max_db_connections = 14: 2 PgBouncers and one that leaves x (2 databases"),
        ("kubernetes", {"pool_leave_s": 301}, "kubernetes.pool_leave_s = 301"),
        ("kubernetes", {"pool_names": ["a_b"]}, "'a_b' is no DNS name"),
        ("kubernetes", {"pool_service_annotations": {"a b": "c"}}, "'a b' is no annotation's name"),
        ("kubernetes", {"namespace": "Big"}, "kubernetes.namespace = 'Big'"),
        ("kubernetes", {"replicas": 3}, "kubernetes.replicas = 3: unknown key; known here: anti_a"),
        ("postgres", {"volume_size": "5 GB"}, "postgres.volume_size = '5 GB'"),
    ],
)  # fmt: skip
def test_a_problem_names_the_key_the_value_and_the_way_out(
    key: str, value: dict[str, Any], told: str
) -> None:
    text = problems(merged(LEAST, {key: value}))
    assert told in text
    assert "1 problem;" in text


def test_a_second_key_of_secrets_that_nobody_keeps_in_a_state() -> None:
    """Else the new repository would silently get the old key."""
    text = problems(
        merged(LEAST, {"kubernetes": {"secrets": "cluster"}, "archive": {"key_ids": ["k1", "k2"]}})
    )
    assert "archive.key_ids = k1, k2: `elsapg secrets apply` keeps one key" in text
    assert "ELSAPG_REPOSITORY_CIPHER" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kubernetes", {"namespace": "x"}),
        ("archive", {"endpoint": "s3.example.com"}),
        ("archive", {"credentials": "web-id"}),
        ("postgres", {"volume_size": "5Gi"}),
        ("postgres", {"wal_volume_size": "5Gi"}),
    ],
)
def test_docker_refuses_what_it_would_not_read(key: str, value: dict[str, Any]) -> None:
    [(name, only)] = value.items()
    told = problems({key: value})
    assert f"elsapg:{key}.{name} = {only!r}: is for the kubernetes target" in told
    assert "set target to kubernetes" in told


def test_our_own_stacks_hold() -> None:
    root = Path(__file__).resolve().parents[2]
    for name in ("staging", "production"):
        assert stackfile.read(root, name).target == "kubernetes"
