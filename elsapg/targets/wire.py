"""What becomes of values on their way through Pulumi's engine."""

from __future__ import annotations

from typing import Any


def whole(value: Any) -> Any:
    """Pulumi's wire has floats only: 6432.0 is 6432."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [whole(v) for v in value]
    if isinstance(value, dict):
        return {k: whole(v) for k, v in value.items()}
    return value
