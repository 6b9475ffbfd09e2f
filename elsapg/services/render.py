"""The Kubernetes manifests of a stack, as files: what the program registers, and nothing else.

The program runs against a monitor that only remembers. There is no engine, plugin or cluster, and
whatever is generated (passwords, keys, certificates) is replaced by a placeholder and then left
out: two runs give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format  # type: ignore[import-untyped]
from pulumi.runtime import mocks, settings, stack
from pulumi.runtime.proto import resource_pb2
from pulumi.runtime.sync_await import _sync_await

from elsapg import stackfile
from elsapg.errors import DeploymentError, UsageError
from elsapg.program import program
from elsapg.services.places import write_private
from elsapg.settings import Settings
from elsapg.targets.kubernetes import secret_objects
from elsapg.targets.kubernetes.objects import Place
from elsapg.targets.wire import whole

Manifest = dict[str, Any]

# No name that kubectl or Argo CD would take for a manifest.
INDEX = ".elsapg-rendered"
# `kubectl apply -f DIR` takes files by name: what others need comes first.
_ORDER = (
    ("Namespace",),
    ("ServiceAccount", "Role", "RoleBinding"),
    ("NetworkPolicy",),
    ("Issuer", "Certificate", "ExternalSecret", "Secret"),
    ("ConfigMap",),
    ("PersistentVolumeClaim",),
    ("Service",),
    ("PodDisruptionBudget",),
    ("StatefulSet", "Deployment"),
    ("Job", "CronJob"),
    ("PodMonitor", "PrometheusRule"),
)
_PLACEHOLDER = "not-rendered"
_SIGNATURE = "4dabf18193072939515e22adb298388d"


@dataclass(frozen=True)
class Recorded:
    """One resource as the program asks for it. `inputs`: secrets are marked as on the wire."""

    type: str
    name: str
    parent: str
    urn: str
    inputs: Mapping[str, Any]
    protect: bool
    depends_on: frozenset[str]

    @property
    def manifest(self) -> Manifest | None:
        """The Kubernetes object, if it is one."""
        if not self.type.startswith("kubernetes:"):
            return None
        found = whole(dict(self.inputs))
        assert isinstance(found, dict)
        return found


class _NoOne(mocks.Mocks):
    """Every answer comes from the recorder itself."""

    def call(self, args: mocks.MockCallArgs) -> Any:
        raise AssertionError(args.token)

    def new_resource(self, args: mocks.MockResourceArgs) -> Any:
        raise AssertionError(args.name)


class Recorder(mocks.MockMonitor):
    """Remembers what is registered, and gives back what was asked for, secrets as secrets."""

    def __init__(self) -> None:
        super().__init__(_NoOne())
        self.seen: list[Recorded] = []

    def RegisterResource(self, request: Any) -> Any:
        if request.type == "pulumi:pulumi:Stack":
            return super().RegisterResource(request)  # type: ignore[no-untyped-call]
        urn = self.make_urn(request.parent, request.type, request.name)
        inputs = json_format.MessageToDict(request.object)
        self.seen.append(
            Recorded(
                type=request.type,
                name=request.name,
                parent=request.parent,
                urn=urn,
                inputs=inputs,
                protect=request.protect,
                depends_on=frozenset(request.dependencies),
            )
        )
        outputs = {**inputs, **_placeholders(request.type)}
        response = resource_pb2.RegisterResourceResponse(urn=urn, id=request.name)
        json_format.ParseDict(outputs, response.object)
        return response


def _placeholders(type_: str) -> dict[str, Any]:
    """What the program's own resources would give: never the values that it has drawn."""
    hidden = {_SIGNATURE: "1b47061264138c4ac30d75fd1eb44270", "value": _PLACEHOLDER}
    if type_.endswith(":Stash"):
        return {"output": hidden}
    if ":pki" in type_ or "pki:" in type_:
        return {"certificate": _PLACEHOLDER, "private_key": hidden, "not_after": _PLACEHOLDER}
    return {}


def record(name: str, settings_: Settings, root: Path) -> list[Recorded]:
    """Run the program of a stack and return what it registers, in its order."""
    monitor = Recorder()
    # As a preview: nothing is asked of the outside world.
    mocks.set_mocks(_NoOne(), project="elsapg", stack=name, preview=True, monitor=monitor)
    # A new root, for outputs are collected on it.
    settings.set_root_resource(None)  # type: ignore[arg-type]
    _sync_await(stack.run_in_stack(lambda: program(name, settings_, root)))
    return monitor.seen


@dataclass(frozen=True)
class Rendered:
    """File name to text; and which Secrets somebody else must make, each with its type."""

    files: Mapping[str, str]
    missing: Mapping[str, str]


def render(root: Path, name: str) -> Rendered:
    """The manifests of a stack. Raises UsageError where there are none to be had."""
    found = stackfile.read(root, name)
    if found.target != "kubernetes":
        raise UsageError(
            f"stack {name!r} is for {found.target} (elsapg:target), which takes no manifests: "
            f"`elsapg up --stack {name}` deploys it"
        )
    seen = record(name, found, root)
    manifests = [r.manifest for r in seen if r.manifest is not None and ":providers:" not in r.type]
    place = Place(name, found, {})
    return Rendered(
        files=_files(m for m in manifests if m["kind"] != "Secret"),
        missing={n: secret_objects.needed(place)[n] for n in secret_objects.made_by_hand(place)},
    )


def _files(manifests: Iterable[Manifest]) -> dict[str, str]:
    files: dict[str, str] = {}
    for manifest in manifests:
        text = yaml.dump(manifest, Dumper=_Dumper, sort_keys=True, width=1000, allow_unicode=True)
        if _SIGNATURE in text or _PLACEHOLDER in text:
            # Stands for a secret in the clear: a defect, and never to be written.
            raise AssertionError(f"a secret in {manifest['kind']} {manifest['metadata']['name']}")
        files[file_name(manifest)] = text
    return dict(sorted(files.items()))


def file_name(manifest: Manifest) -> str:
    """Stable, and sorted as the objects are to be applied."""
    kind = manifest["kind"]
    [order] = [i for i, kinds in enumerate(_ORDER) if kind in kinds]
    return f"{order:02d}-{kind.lower()}-{manifest['metadata']['name']}.yaml"


class _Dumper(yaml.SafeDumper):
    """Files of many lines as they are, so that a review sees what changes in them."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


@dataclass(frozen=True)
class Written:
    """What a run changed in the folder."""

    changed: tuple[str, ...]
    removed: tuple[str, ...]
    missing: Mapping[str, str]


def write(root: Path, name: str, out: Path) -> Written:
    """Render into the folder `out`; files of objects that are gone are removed.

    Removes only what it wrote itself, which `.elsapg-rendered` in there lists. Raises UsageError
    if the folder is another stack's.
    """
    rendered = render(root, name)
    before = _index(out, name)
    foreign = [f for f in rendered.files if f not in before and (out / f).exists()]
    if foreign:
        raise UsageError(
            f"{out / foreign[0]} exists and was not written by `elsapg render`: move it away, or "
            "render into an empty folder"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        changed = [f for f, text in rendered.files.items() if _differs(out / f, text)]
        for file in changed:
            write_private(out / file, rendered.files[file], mode=0o644)
        removed = sorted(before - rendered.files.keys())
        for file in removed:
            (out / file).unlink(missing_ok=True)
        index = {"stack": name, "files": list(rendered.files), "secrets": dict(rendered.missing)}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        if _differs(out / INDEX, text):
            write_private(out / INDEX, text, mode=0o644)
    except OSError as error:
        raise DeploymentError(f"cannot write {error.filename}: {error.strerror}") from None
    return Written(tuple(changed), tuple(removed), rendered.missing)


def _differs(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") != text
    except (FileNotFoundError, UnicodeDecodeError):
        return True


def _index(out: Path, name: str) -> set[str]:
    """The files that the last run wrote here."""
    path = out / INDEX
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        stack_, files = found["stack"], found["files"]
    except FileNotFoundError:
        return set()
    except (NotADirectoryError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is not readable as a list of files: render elsewhere") from None
    if stack_ != name:
        raise UsageError(
            f"{out} holds the manifests of stack {stack_!r}: give {name!r} a folder of its own"
        )
    # Names alone: nothing in that file may lead elsewhere.
    return {f for f in files if re.fullmatch(r"\d\d-[a-z0-9.-]+\.yaml", str(f))}
