"""Reads a stack's file into settings, and says everything that is wrong with it at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from elsapg.errors import Problem, SettingsError, UsageError
from elsapg.settings import NAMESPACE, Settings
from elsapg.sums import check_sums

# A stack's name becomes part of container, volume and host names: RFC 1123 labels, with
# room for the longest suffix within 63 characters.
STACK_NAME = re.compile(r"[a-z][a-z0-9-]{0,28}[a-z0-9]|[a-z]")


def check_stack_name(name: str) -> str:
    """Return `name` if it can be part of container and host names, else raise UsageError."""
    if not STACK_NAME.fullmatch(name):
        raise UsageError(
            f"stack name {name!r} cannot name containers: use 1 to 30 lower-case letters, digits "
            "and dashes, starting with a letter, such as 'local' or 'team-a-staging'"
        )
    return name


def stack_file(root: Path, stack: str) -> Path:
    """The file that holds `stack`'s settings."""
    return root / "stacks" / f"Pulumi.{check_stack_name(stack)}.yaml"


def read(root: Path, stack: str) -> Settings:
    """Read and check `stacks/Pulumi.<stack>.yaml` below `root`.

    Raises UsageError when the file is missing or no YAML, SettingsError when it does not hold.
    """
    path = stack_file(root, stack)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.stem.removeprefix("Pulumi.") for p in path.parent.glob("Pulumi.*.yaml"))
        raise UsageError(
            f"no stack {stack!r}: {path} does not exist; known stacks: {', '.join(known) or 'none'}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = str(error).replace("\n", " ")
        raise UsageError(f"{path} is not valid YAML: {where}") from None
    config = document.get("config") if isinstance(document, dict) else None
    if config is None:
        config = {}
    if not isinstance(config, dict):
        raise UsageError(f"{path}: 'config' must be a mapping of '{NAMESPACE}:<key>' to values")
    prefix = f"{NAMESPACE}:"
    values = {
        str(k).removeprefix(prefix): v for k, v in config.items() if str(k).startswith(prefix)
    }
    return load(values, str(path), _stray(document if isinstance(document, dict) else {}, config))


# What Pulumi itself puts into a stack's file, and the namespaces of providers.
_TOP_LEVEL = ("config", "encryptionsalt", "encryptedkey", "secretsprovider", "environment")


def _stray(document: dict[Any, Any], config: dict[Any, Any]) -> list[Problem]:
    """Keys that nothing would read: a forgotten or misspelt `elsapg:`, say."""
    found = [
        Problem(str(key), _shown(value), f"unknown; known here: {', '.join(_TOP_LEVEL)}")
        for key, value in document.items()
        if key not in _TOP_LEVEL
    ]
    return found + [
        Problem(
            str(key),
            _shown(value),
            f"would not be read; keys begin with {NAMESPACE!r}: "
            f"{NAMESPACE}:{str(key).rpartition(':')[2]}",
        )
        for key, value in config.items()
        if ":" not in str(key) or _misspelt(str(key).partition(":")[0])
    ]


def _misspelt(namespace: str) -> bool:
    """Whether it was meant to be ours; other namespaces are those of providers."""
    return namespace != NAMESPACE and bool(difflib.get_close_matches(namespace, [NAMESPACE]))


def load(values: dict[str, Any], source: str, others: Sequence[Problem] = ()) -> Settings:
    """Check `values` (keys without the namespace) and return the settings.

    Raises SettingsError with every problem: `others` that the caller found, those of single keys,
    and those of the sums that can be judged without the bad keys.
    """
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems = [*others, *(_problem(e) for e in error.errors(include_url=False))]
        bad = {p.key.removeprefix(f"{NAMESPACE}:") for p in problems}
        try:
            rest = Settings.model_validate(_without(values, [e["loc"] for e in error.errors()]))
        except ValidationError:
            raise SettingsError(source, problems) from None
        problems += [p for p, keys in check_sums(rest) if not bad & keys]
        raise SettingsError(source, problems) from None
    problems = [*others, *(problem for problem, _ in check_sums(settings))]
    if problems:
        raise SettingsError(source, problems)
    return settings


def _without(values: dict[str, Any], locations: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy of `values` without the given (at most two levels deep) locations."""
    copy = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for location in locations:
        group = copy.get(str(location[0]))
        if len(location) > 1 and isinstance(group, dict):
            group.pop(str(location[1]), None)
        else:
            copy.pop(str(location[0]), None)
    return copy


def _problem(error: Any) -> Problem:
    """One pydantic error as a problem: key as written in the stack file, value, way out."""
    location = [str(part) for part in error["loc"]]
    # A union reports one location per member type; the key itself is enough.
    key = f"{NAMESPACE}:" + ".".join(location[:2])
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _siblings(location)
        return Problem(key, _shown(error["input"]), f"unknown key; known here: {', '.join(known)}")
    reason = error["msg"].removeprefix("Value error, ")
    return Problem(key, _shown(error["input"]), reason[0].lower() + reason[1:])


def _siblings(location: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    if len(location) > 1:
        annotation = Settings.model_fields[location[0]].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return sorted(model.model_fields)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
