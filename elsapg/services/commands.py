"""Commands in what is told to a person: whoever types them must not meet another stack."""

from __future__ import annotations

import re

# The stack of a command that names none.
DEFAULT = "local"
# Not those that have no stack.
_COMMAND = re.compile(r"`(elsapg (?!setup|migrate (?:new|script))(?:(?!--stack|-s )[^`])*)`")


def for_whoever_applies(text: str) -> str:
    """Of a stack on kubernetes: what brings it back may be Pulumi, or a tool of GitOps."""
    text = text.replace("`elsapg up`", "`elsapg up` (or what `elsapg render` writes, applied)")
    return text.replace(
        "`elsapg up --refresh`",
        "`elsapg up --refresh` (or delete Job bootstrap-…, and have what `elsapg render` writes "
        "applied)",
    )


def for_stack(text: str, stack: str) -> str:
    """The text with `--stack NAME` in each of our commands that names none.

    What the nodes and the runner tell does not know the stack's name.
    """
    if stack == DEFAULT:
        return text
    return _COMMAND.sub(rf"`\1 --stack {stack}`", text)
