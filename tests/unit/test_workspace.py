"""The private workspace: the user's files stay as they are; backend and passphrase."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
import yaml

from elsapg.errors import DeploymentError, MissingError, NotDeployedError, UsageError
from elsapg.services import places, workspace
from elsapg.services.places import Places, find_root, write_private
from tests.unit.conftest import write_command

pytestmark = pytest.mark.usefixtures("fake_pulumi")


def theirs(project: Path) -> Path:
    return project / "stacks" / "Pulumi.local.yaml"


def copy(project: Path) -> Path:
    return project / ".elsapg" / "workspaces" / "local" / "Pulumi.local.yaml"


def test_the_users_files_are_copied_never_written(project: Path) -> None:
    before = theirs(project).read_text()
    made = workspace.prepare(project, "local")
    assert theirs(project).read_text() == before
    assert yaml.safe_load(copy(project).read_text()) == yaml.safe_load(before)
    document = yaml.safe_load((made.folder / "Pulumi.yaml").read_text())
    assert document == {"name": "elsapg", "runtime": "python"}


def test_the_salt_of_the_last_run_stays_and_the_config_is_new(project: Path) -> None:
    workspace.prepare(project, "local")
    copy(project).write_text("config:\n  elsapg:target: old\nencryptionsalt: v1:ours\n")
    workspace.prepare(project, "local")
    document = yaml.safe_load(copy(project).read_text())
    assert document == {"config": {"elsapg:target": "docker"}, "encryptionsalt": "v1:ours"}


@pytest.mark.parametrize("key", workspace.SECRET_KEYS)
def test_the_users_own_secret_keys_win(project: Path, key: str) -> None:
    workspace.prepare(project, "local")
    copy(project).write_text("encryptionsalt: v1:ours\n")
    theirs(project).write_text(f"{key}: theirs\n")
    workspace.prepare(project, "local")
    assert yaml.safe_load(copy(project).read_text()) == {key: "theirs"}


def test_a_stack_whose_file_is_gone_keeps_its_workspace(project: Path) -> None:
    workspace.prepare(project, "local")
    theirs(project).unlink()
    workspace.prepare(project, "local")
    assert copy(project).exists()


def test_state_and_passphrase_are_private(project: Path) -> None:
    made = workspace.prepare(project, "local")
    assert made.state == project / ".elsapg" / "state"
    assert stat.S_IMODE(made.state.stat().st_mode) == 0o700
    passphrase = project / ".elsapg" / "passphrase"
    assert stat.S_IMODE(passphrase.stat().st_mode) == 0o600
    assert len(passphrase.read_text().strip()) >= 32
    assert made.env["PULUMI_CONFIG_PASSPHRASE_FILE"] == str(passphrase)
    assert passphrase.read_text().strip() not in json.dumps(dict(made.env))


def test_the_passphrase_is_made_once(project: Path) -> None:
    workspace.prepare(project, "local")
    before = (project / ".elsapg/passphrase").read_text()
    workspace.prepare(project, "local")
    assert (project / ".elsapg/passphrase").read_text() == before


@pytest.mark.parametrize("evidence", ["salt", "state of another stack"])
def test_a_lost_passphrase_is_told_and_not_replaced(project: Path, evidence: str) -> None:
    made = workspace.prepare(project, "local")
    assert made.state is not None
    if evidence == "salt":
        copy(project).write_text("encryptionsalt: v1:x\n")
    else:
        write_private(made.state / ".pulumi/stacks/elsapg/other.json", "{}")
    (project / ".elsapg/passphrase").unlink()
    with pytest.raises(UsageError, match="passphrase of stack 'local' is lost"):
        workspace.prepare(project, "local")
    assert not (project / ".elsapg/passphrase").exists()


@pytest.mark.parametrize("name", ["PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"])
def test_the_users_passphrase_wins(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "")
    made = workspace.prepare(project, "local")
    assert "PULUMI_CONFIG_PASSPHRASE_FILE" not in made.env
    assert not (project / ".elsapg/passphrase").exists()


def test_a_named_backend_wins(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{tmp_path}/there")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "x")
    made = workspace.prepare(project, "local")
    assert made.state == tmp_path / "there"
    assert "PULUMI_BACKEND_URL" not in made.env
    assert "PULUMI_HOME" not in made.env


def test_a_login_wins_and_its_service_needs_no_passphrase(project: Path) -> None:
    write_private(Path.home() / ".pulumi/credentials.json", '{"current": "https://api.pulumi.com"}')
    made = workspace.prepare(project, "local")
    assert made.state is None
    assert not {"PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE_FILE"} & set(made.env)


def test_a_shared_state_wants_a_shared_passphrase(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULUMI_BACKEND_URL", "s3://bucket")
    with pytest.raises(UsageError, match="the state is shared"):
        workspace.prepare(project, "local")
    theirs(project).write_text("secretsprovider: awskms://x\n")
    assert workspace.prepare(project, "local").state is None


def test_installed_plugins_are_used(project: Path) -> None:
    (Path.home() / ".pulumi/plugins").mkdir(parents=True)
    assert "PULUMI_HOME" not in workspace.prepare(project, "local").env


def test_without_a_pulumi_the_way_out_is_setup(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    (project / ".elsapg/bin/pulumi").unlink()
    with pytest.raises(MissingError, match=r"none on PATH.*elsapg setup"):
        workspace.prepare(project, "local")


def test_an_old_pulumi_is_not_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    write_command(project / ".elsapg/bin/pulumi", "echo v3.1.0")
    with pytest.raises(MissingError, match=r"pulumi is 3\.1\.0"):
        workspace.prepare(project, "local")


def test_outputs_of_a_stack_that_never_was(project: Path) -> None:
    with pytest.raises(NotDeployedError, match="elsapg up --stack local"):
        workspace.outputs("local", project)


def test_outputs_are_read_by_the_engine(project: Path) -> None:
    write_command(
        project / ".elsapg/bin/pulumi",
        'case "$1" in version) echo v3.258.0;; *) echo \'{"a": 1}\';; esac',
    )
    made = workspace.prepare(project, "local")
    assert made.state is not None
    write_private(made.state / ".pulumi/stacks/elsapg/local.json", "{}")
    assert workspace.outputs("local", project) == {"a": 1}


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("error: getting secrets manager: incorrect passphrase", "does not open the state"),
        ("warning: x\nerror: the disk is full\nmore", "failed: the disk is full"),
        ("", "without a message"),
    ],
)
def test_engine_errors_are_explained(stderr: str, says: str) -> None:
    error = workspace.explain("local", stderr, "up")
    assert isinstance(error, DeploymentError)
    assert says in str(error)


def test_the_root_is_found_from_below(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ELSAPG_ROOT")
    monkeypatch.chdir(project / "stacks")
    assert find_root() == project
    # Somebody else's Pulumi project is not ours: then it is where the package lies.
    other = tmp_path / "other"
    other.mkdir()
    (other / "Pulumi.yaml").write_text("name: website\n")
    monkeypatch.chdir(other)
    assert find_root() == Path(places.__file__).resolve().parents[2]


def test_a_wrong_root_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ELSAPG_ROOT", str(tmp_path))
    with pytest.raises(UsageError, match=r"no Pulumi\.yaml there"):
        find_root()


def test_private_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    assert write_private(path, "one", replace=False)
    assert not write_private(path, "two", replace=False)
    assert path.read_text() == "one"
    assert write_private(path, "three")
    assert path.read_text() == "three"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_environment_leads_to_our_tools(project: Path) -> None:
    env = workspace.prepare(project, "local").env
    assert env["PATH"].split(":")[0] == str(Places(project).bin)
    assert env["PULUMI_PYTHON_CMD"] == sys.executable
