"""The door for `pulumi up`: Pulumi's configuration gives the settings that the file gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from pulumi.runtime import config as pulumi_config
from pulumi.runtime import mocks

from elsapg import stackfile
from elsapg.program_entry import decode, settings_from_pulumi_config

ROOT = Path(__file__).resolve().parents[2]


class Nothing(mocks.Mocks):
    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        return args.name, dict(args.inputs)

    def call(self, args: mocks.MockCallArgs) -> dict[str, Any]:
        return {}


@pytest.fixture
def stack() -> Iterator[None]:
    mocks.set_mocks(Nothing(), project="elsapg", stack="local")
    yield
    pulumi_config.set_all_config({})


def as_pulumi_gives_it(config: dict[str, Any]) -> dict[str, str]:
    return {
        k: json.dumps(v) if isinstance(v, dict | list | bool) else str(v) for k, v in config.items()
    }


@pytest.mark.parametrize(
    "path", sorted((ROOT / "stacks").glob("Pulumi.*.yaml")), ids=lambda p: p.name
)
@pytest.mark.usefixtures("stack")
def test_both_doors_give_the_same_settings(path: Path) -> None:
    config = yaml.safe_load(path.read_text())["config"]
    pulumi_config.set_all_config(as_pulumi_gives_it(config))
    name = path.stem.removeprefix("Pulumi.")
    assert settings_from_pulumi_config() == stackfile.read(ROOT, name)


@pytest.mark.usefixtures("stack")
def test_problems_are_all_listed_without_a_traceback() -> None:
    pulumi_config.set_all_config({"elsapg:nope": "1", "elsapg:postgres": '{"replicas": 99}'})
    with pytest.raises(pulumi.RunError, match=r"2 problems"):
        settings_from_pulumi_config()


@pytest.mark.usefixtures("stack")
def test_the_environment_serves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULUMI_CONFIG", '{"elsapg:postgres": "{\\"replicas\\": 2}"}')
    assert settings_from_pulumi_config().postgres.replicas == 2


def test_values_are_decoded() -> None:
    given = {"elsapg:a": "docker", "elsapg:b": "true", "elsapg:c": '{"d": 1}', "aws:region": "x"}
    assert decode(given) == {"a": "docker", "b": True, "c": {"d": 1}}
