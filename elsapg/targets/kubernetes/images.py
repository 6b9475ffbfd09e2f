"""Which images a stack runs: by digest, from `stacks/images.<stack>.yaml`.

`elsapg images push` writes that file; a team commits it, so that what runs is decided in Git.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from elsapg.errors import UsageError
from elsapg.settings import Settings

# The other images of the Dockerfile are for what kubernetes itself brings.
IMAGES = ("postgres", "pgbouncer", "runner")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digests_file(root: Path, stack: str) -> Path:
    """Where the digests of a stack's images stand."""
    return root / "stacks" / f"images.{stack}.yaml"


def repository(settings: Settings, image: str) -> str:
    """An image's name in the registry, without tag or digest."""
    return f"{settings.kubernetes.registry}/elsapg-{image}"


def read(root: Path, stack: str, settings: Settings) -> Mapping[str, str]:
    """Each image as REPOSITORY@DIGEST. Raises UsageError when a digest is not known."""
    path = digests_file(root, stack)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist, so nobody knows which images stack {stack!r} runs: "
            f"`elsapg images push --stack {stack}` makes them and writes it"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    found = document if isinstance(document, dict) else {}
    for image in IMAGES:
        if not _DIGEST.fullmatch(str(found.get(image))):
            raise UsageError(
                f"{path}: {image} = {found.get(image)!r} is no digest (sha256:…): "
                f"`elsapg images push --stack {stack}` writes it anew"
            )
    return {image: f"{repository(settings, image)}@{found[image]}" for image in IMAGES}
