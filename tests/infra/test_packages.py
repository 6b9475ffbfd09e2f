"""Packages: where the programs come from, how new they are, and that they are what runs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from elsapg.definition import topology as t
from tests.infra.facts import Facts, Unit, judge, none, same

# The least version of each package, by image.
LEAST: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "postgres": {
        "postgresql-17": (17,),
        "postgresql-17-cron": (1, 6),
        "postgresql-17-pgaudit": (17,),
        "patroni": (4,),
        "pgbackrest": (2, 55),
    },
    # 1.21 is the first that tracks prepared statements in transaction mode.
    "pgbouncer": {"pgbouncer": (1, 21), "postgresql-client-17": (17,)},
    "haproxy": {"haproxy": (3,)},
    "etcd": {"etcd-server": (3, 5)},
    "runner": {"pgbackrest": (2, 55), "python3-psycopg": (3, 1)},
    "s3": {},
}
REBUILD = "rebuild the images: `elsapg up` does that when images/Dockerfile or a context changes"
PROGRAMS = re.compile(r"/usr/(lib|bin|sbin|local/bin)/")
LOCAL = {"/usr/local/bin/versitygw"}


def _upstream(version: str) -> tuple[int, ...]:
    numbers = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return tuple(int(n) for n in numbers[1].split(".")) if numbers else ()


def test_packages_are_new_enough(facts: Facts, unit: Unit) -> None:
    """Each program the unit needs is installed, in a version that has what we rely on."""
    image = next(u.image for u in t.units(facts.deployment.settings) if u.name == unit.name)
    none(
        (
            f"{name} is {unit.packages.get(name, 'not installed')}"
            for name, least in LEAST[image].items()
            if _upstream(unit.packages.get(name, "")) < least
        ),
        REBUILD,
    )


def test_packages_are_debians(unit: Unit) -> None:
    """The unit is Debian 13 (trixie), and no package comes from elsewhere."""
    same(
        (unit.release.get("ID"), unit.release.get("VERSION_CODENAME")),
        ("debian", "trixie"),
        REBUILD,
    )
    foreign = (f"{n} {v}" for n, v in unit.packages.items() if re.search(r"pgdg|ubuntu|~bpo", v))
    none(foreign, REBUILD)


def test_what_runs_is_what_is_installed(unit: Unit) -> None:
    """Every process runs an installed program that is still the file on disk."""
    none(
        (
            f"{p.name} runs {p.executable}"
            for p in unit.tree
            if p.executable and (p.executable.endswith("(deleted)") or not _known(p.executable))
        ),
        "restart the unit, so that it runs the program that is installed",
    )


def _known(executable: str) -> bool:
    if executable.startswith("/usr/local/"):
        return executable in LOCAL
    return bool(PROGRAMS.match(executable))


def test_postgresql_runs_the_installed_version(facts: Facts, node: str) -> None:
    """The server that answers is the package that is installed."""
    running = re.search(r"Debian ([^)]+)\)", facts.server(node)["server"][0]["version"])
    installed = facts.unit(node).packages.get("postgresql-17", "none")
    judge(
        running and running[1] == installed,
        f"{running[1] if running else 'no Debian build'} runs, {installed} is installed",
        f"restart {node} by `patronictl restart`, the standby first",
    )


def test_patroni_runs_the_installed_version(facts: Facts, node: str) -> None:
    """The Patroni that answers is the package that is installed."""
    facts.need(node)
    running = facts.deployment.patroni("/patroni", node)["patroni"]["version"]
    installed = facts.unit(node).packages["patroni"]
    judge(
        installed.startswith(f"{running}-"),
        f"{running} runs, {installed} is installed",
        f"restart {node}",
    )


def test_pgbouncer_runs_the_installed_version(facts: Facts, pooler: str) -> None:
    """The PgBouncer that answers is the package that is installed."""
    running = facts.show(pooler, "VERSION")[0]["version"].removeprefix("PgBouncer ")
    installed = facts.unit(pooler).packages["pgbouncer"]
    judge(
        installed.startswith(f"{running}-"),
        f"{running} runs, {installed} is installed",
        f"restart {pooler}",
    )
