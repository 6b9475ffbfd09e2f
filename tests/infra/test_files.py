"""Files and secrets: who may read them, and where none may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from elsapg.definition import topology as t
from tests.infra.facts import UID, Facts, Unit, judge, none

FILE_MODE = 0o640
FOLDER_MODE = 0o750
PROJECTED_MODE = 0o440
RENDER = "apply the stack's own manifests again (`elsapg up`, or `elsapg render`)"
PRIVATE_KEY = "PRIVATE KEY-----"
ROTATE = (
    "find what wrote it there, remove it, and give the role a new password: "
    "what was once in the open stays known"
)


def _leaks(text: str, private: Mapping[str, str]) -> Iterable[str]:
    yield from (what for what, value in private.items() if value in text)
    if PRIVATE_KEY in text:
        yield "a private key"


def test_configuration_is_roots_and_private(facts: Facts, unit: Unit) -> None:
    """Files in /etc/elsapg are root's, readable by group 999 only, and no process can write there.

    On docker 0640 in folders of 0750. A projected volume has folders and links of the kubelet's,
    and is mounted read-only.
    """
    if facts.kubernetes:
        _projected(unit)
        return
    judge(
        unit.files,
        f"{unit.name} has no /etc/elsapg",
        lambda: facts.deployment.hosts.anew(unit.name),
    )
    none(
        (
            f"{f.path} is {f.owner}:{f.group} mode {f.mode:04o}"
            for f in unit.files
            if (f.owner, f.group) != (0, UID)
            or (f.kind == "d" and f.mode != FOLDER_MODE)
            or (f.kind == "f" and f.mode & ~FILE_MODE)
            or f.kind not in "df"
        ),
        "chmod and chown it back, or recreate the unit; a key that others could read is to be "
        "replaced",
    )


def _projected(unit: Unit) -> None:
    files = [f for f in unit.files if f.kind == "f"]
    judge(files, f"{unit.name} has no files in /etc/elsapg", RENDER)
    none(
        (
            f"{f.path} is {f.owner}:{f.group} mode {f.mode:04o}"
            for f in files
            if (f.owner, f.group) != (0, UID) or f.mode & ~PROJECTED_MODE
        ),
        RENDER,
    )
    mounts = {line.split()[1]: line.split()[3].split(",") for line in unit.mounts}
    judge(
        "ro" in mounts.get(t.CONFIG_DIR, []),
        f"{t.CONFIG_DIR} is mounted {','.join(mounts.get(t.CONFIG_DIR, ['nowhere']))}",
        RENDER,
    )


def test_data_directory_is_private(facts: Facts, node: str) -> None:
    """The data directory is PostgreSQL's own, mode 0700."""
    mode, owner, group = facts.unit(node).data_directory.split() or ("none", "", "")
    judge(
        # A volume's root may hand down its setgid bit, which lets nobody in.
        (mode.removeprefix("2"), owner, group) == ("700", str(UID), str(UID)),
        f"{t.PGDATA} is {owner}:{group} mode {mode}",
        f"chmod 0700 {t.PGDATA}",
    )


def test_no_secret_in_an_environment(facts: Facts, unit: Unit) -> None:
    """No password or key stands in a process's environment or in the unit's definition."""
    private = dict(facts.private)
    # versitygw takes its credentials from its environment only; its starter reads them from files.
    known = {"repo1-s3-key-secret", "s3-key"} if unit.name == "s3" else set()
    inside = {what: value for what, value in private.items() if what not in known}
    none(_leaks(unit.environ, inside), ROTATE)
    none(_leaks("\n".join(facts.containment(unit.name).environment), private), ROTATE)


def test_no_secret_in_an_argument(facts: Facts, unit: Unit) -> None:
    """No password or key stands in the arguments of a process, where anyone can see them."""
    none(_leaks("\n".join(p.command for p in unit.processes), facts.private), ROTATE)


def test_no_secret_in_a_log(facts: Facts, unit_name: str) -> None:
    """No password or key was ever written to the unit's log."""
    if unit_name not in facts.states:
        return
    none(_leaks(facts.backend.logs(unit_name), facts.private), ROTATE)


@pytest.mark.target("docker", reason="the images are in their registry, and run by digest")
def test_no_secret_in_an_image(facts: Facts) -> None:
    """No password or key is in the images' definitions."""
    none(_leaks(facts.backend.image_history(), facts.private), ROTATE)
