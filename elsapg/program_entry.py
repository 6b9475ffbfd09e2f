"""The door for `pulumi up`: the stack's settings out of Pulumi's own configuration.

`elsapg up` reads the stack's file itself; under a full Pulumi the engine has read it, and gives
each key's value as text, objects as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.runtime import config as pulumi_config

from elsapg import stackfile
from elsapg.errors import ElsapgError
from elsapg.settings import NAMESPACE, Settings


def settings_from_pulumi_config() -> Settings:
    """The settings of the running stack. Raises RunError (no traceback) with every problem."""
    try:
        stack = stackfile.check_stack_name(pulumi.get_stack())
        # The whole mapping, not `pulumi.Config.get` per key: unknown keys must be refused.
        given = {**pulumi_config.get_config_env(), **pulumi_config.CONFIG.get()}
        return stackfile.load(decode(given), source=f"the configuration of stack {stack!r}")
    except ElsapgError as error:
        raise pulumi.RunError(str(error)) from None


def decode(config: Mapping[str, str]) -> dict[str, Any]:
    """Keys of our namespace, without it; values as YAML would have given them."""
    prefix = f"{NAMESPACE}:"
    return {
        key.removeprefix(prefix): _value(text)
        for key, text in config.items()
        if key.startswith(prefix)
    }


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
