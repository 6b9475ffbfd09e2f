"""What runs and ends: the bootstrap (configuration, SQL, first backup), and by schedule backups,
dumps, checks of the repository and restore drills.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pulumi

from elsapg.definition import topology as t
from elsapg.definition.files import File, files_for, task_files
from elsapg.targets.kubernetes import pods
from elsapg.targets.kubernetes.foundation import NODES, RUNNER
from elsapg.targets.kubernetes.objects import Component, Manifest, Place, digest

_FOLDERS = ("/tmp", "/var/spool/pgbackrest", "/var/log/pgbackrest")
# Dumps lie there until they are stored, and a drill restores to there: as large as the data.
SCRATCH = "/var/lib/elsapg"
# Those that need it, with the memory for a server of their own.
WITH_SCRATCH = ("dump", "drill")
_MEMORY_MB, _SCRATCH_MEMORY_MB = 512, 1024
# A backup that was due while the cluster's control plane was away is still taken within this.
_LATE_S = 6 * 3600


class Runner(Component):
    """The bootstrap Job, and the CronJobs of what is done at its time."""

    def __init__(self, place: Place, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("runner", place, opts)
        files = files_for("runner", place.settings, pods.NO_SECRETS)
        config = self.add(pods.config_map(place, RUNNER, RUNNER, files))
        for name, command, schedule in _schedules(place):
            self.add(
                _cron_job(place, name, command, schedule, files),
                pulumi.ResourceOptions(depends_on=[config]),
            )
        before = [self.add(manifest) for manifest in _task_maps(place)]
        self.bootstrap = self.add(
            bootstrap_manifest(place),
            pulumi.ResourceOptions(
                depends_on=before,
                custom_timeouts=pulumi.CustomTimeouts(create=f"{t.LONG_S}s"),
            ),
            name="job-bootstrap",
        )
        self.done()


def _schedules(place: Place) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    archive = place.settings.archive
    return (
        ("backup-full", ("backup", "full"), archive.full_schedule),
        ("backup-incremental", ("backup", "incr"), archive.incremental_schedule),
        ("dump", ("dump",), archive.dump_schedule),
        ("check", ("check",), archive.check_schedule),
        ("drill", ("drill",), archive.drill_schedule),
    )


def _cron_job(
    place: Place, name: str, command: tuple[str, ...], schedule: str, files: Sequence[File]
) -> Manifest:
    large = name in WITH_SCRATCH
    run = _container(place, RUNNER, command, pods.CONFIG_VOLUME, large)
    volumes = [pods.config_volume(files, RUNNER), *([_large(place)] if large else [])]
    job = {
        "backoffLimit": 2,
        # One that cannot start (no image, no volume) would else keep all later ones from it.
        "activeDeadlineSeconds": t.LONG_S,
        "template": _pod(place, [run], volumes),
    }
    spec = {
        "schedule": schedule,
        "timeZone": "Etc/UTC",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": _LATE_S,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"metadata": {"labels": place.labels(RUNNER)}, "spec": job},
    }
    return place.manifest("batch/v1", "CronJob", name, RUNNER, spec=spec)


def _task_maps(place: Place) -> list[Manifest]:
    """The plain files of each task: a ConfigMap by its name."""
    return [
        pods.config_map(place, task.name, RUNNER, _task_files(place, task))
        for task in t.tasks(place.settings)
    ]


def _task_files(place: Place, task: t.Task) -> tuple[File, ...]:
    return task_files(task.name, place.settings, pods.NO_SECRETS)


def bootstrap_manifest(place: Place) -> Manifest:
    """The tasks in their order. Each sees only its own files: the superuser's key ends with the
    task that needs it. The first one waits for pods that are being replaced, and is told of them;
    it holds the pools while it restarts a primary.

    A Job never changes: another image (with the SQL in it) or configuration is another Job.
    """
    tasks = t.tasks(place.settings)
    names = {task.name: f"config-{task.name}" for task in tasks}
    volumes = [pods.config_volume(_task_files(place, k), k.name, names[k.name]) for k in tasks]
    runs = [_container(place, k.name, k.command, names[k.name]) for k in tasks]
    runs[0]["volumeMounts"].append(pods.TOKEN_MOUNT)
    runs[0]["env"] = pods.environment({"ELSAPG_GATES": t.GATES, "ELSAPG_STATEFULSET": NODES})
    spec = {
        "backoffLimit": 6,
        "activeDeadlineSeconds": 2 * sum(k.timeout_s for k in tasks),
        "template": _pod(place, runs[-1:], [*volumes, pods.token()], initContainers=runs[:-1]),
    }
    name = f"bootstrap-{digest([spec, [m['data'] for m in _task_maps(place)]])}"
    return place.manifest("batch/v1", "Job", name, RUNNER, spec=spec)


def _large(place: Place) -> Manifest:
    """The scratch volume: the machine's own disk, or a volume that comes and goes with the pod."""
    size = place.settings.kubernetes.scratch_volume_size
    if size is None:
        return pods.empty("scratch")
    template = {"spec": pods.claim(place, size)}
    return {"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}


def _container(
    place: Place, name: str, arguments: Sequence[str], config: str, large: bool = False
) -> Manifest:
    mounts = [pods.mount(config, t.CONFIG_DIR, read_only=True)]
    mounts += [pods.mount(volume, path) for volume, path in _scratch().items()]
    mounts += [pods.mount("scratch", SCRATCH)] if large else []
    return pods.container(
        name,
        place.images["runner"],
        mounts,
        pods.resources(_SCRATCH_MEMORY_MB if large else _MEMORY_MB, 0.1, 2),
        args=list(arguments),
    )


def _scratch() -> dict[str, str]:
    return pods.scratch("runner", _FOLDERS)


def _pod(
    place: Place, containers: Sequence[Manifest], volumes: Sequence[Manifest], **more: Any
) -> Manifest:
    return pods.pod(
        place,
        RUNNER,
        RUNNER,
        containers,
        [*volumes, *(pods.empty(volume) for volume in _scratch())],
        # A pod that failed stays, with what it said.
        restartPolicy="Never",
        terminationGracePeriodSeconds=30,
        **more,
    )
