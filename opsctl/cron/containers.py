"""What Docker Compose and Kubernetes need to run the schedule, as text."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsctl import __version__
from opsctl.cron.jobs import Job, needed_variables
from opsctl.cron.units import folder_of

if TYPE_CHECKING:
    from opsctl.config import Config

IMAGE = f"opsctl:{__version__}"
CONFIG = "/etc/opsctl/opsctl.toml"
STATE = "/var/lib/opsctl"
FILES = "opsctl-files"
USER = 10001
"""The image's user."""

LATE_SECONDS = 600
"""How late Kubernetes may begin a run: after a longer outage the next one is soon enough."""


def compose(config: "Config", *, image: str = IMAGE) -> str:
    """A service for a compose file: run-scheduled, with a read-only root file system and no rights."""
    folders = local_folders(config)
    variables = sorted(needed_variables(config))
    service: dict[str, Any] = {
        "image": image,
        "command": ["run-scheduled", "--config", CONFIG],
        "init": True,
        "restart": "unless-stopped",
        "stop_grace_period": "2m",
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 - the container's own
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "volumes": [
            f"{_escaped(config.source)}:{CONFIG}:ro",
            f"opsctl-state:{STATE}",
            *(f"{_escaped(str(host))}:{_escaped(str(inside))}" for host, inside in folders.items()),
            *(f"{_escaped(str(host))}:{_escaped(str(inside))}:ro" for host, inside in named_files(config).items()),
        ],
        "healthcheck": {
            "test": ["CMD", "opsctl", "run-scheduled", "--health", "--quiet", "--config", CONFIG],
            "interval": "60s",
            "timeout": "20s",
            "start_period": "30s",
            "retries": 2,
        },
    }
    if variables:
        service["environment"] = {name: f"${{{name}:?}}" for name in variables}
    service["environment"] = {**service.get("environment", {}), "OPSCTL_STATE_DIR": STATE}
    document = {"services": {"opsctl": service}, "volumes": {"opsctl-state": None}}
    head = (
        "A service that runs [schedule]: add it to the compose file.\n"
        f"# Its user {USER} must be able to read the files that are mounted, and to write the folders."
    )
    if any(each.service for each in config.databases.values()):
        head += "\n# Beside the database it needs no Docker: take service and tools out of [databases.NAME]."
    return _yaml([document], head)


def kubernetes(config: "Config", jobs: list[Job], *, image: str = IMAGE) -> str:
    """A CronJob for each command."""
    head = (
        "The configuration and what is secret come from:\n"
        "#   kubectl create configmap opsctl --from-file=opsctl.toml\n"
        "#   kubectl create secret generic opsctl --from-env-file=.env\n"
        f"{_files_secret(config)}"
        "# and a PersistentVolumeClaim opsctl keeps the state, and local repositories."
    )
    return _yaml([_cron_job(config, job, image) for job in jobs], head)


def _cron_job(config: "Config", job: Job, image: str) -> dict[str, Any]:
    words = ["cron", "run"] if job.jitter_seconds else []
    volumes: list[dict[str, Any]] = [{"name": "state", "mountPath": STATE, "subPath": "state"}]
    volumes += [
        {"name": "state", "mountPath": str(inside), "subPath": f"repositories{host}"}
        for host, inside in local_folders(config).items()
    ]
    files = named_files(config)
    volumes += [
        {"name": "files", "mountPath": str(inside), "subPath": host.name, "readOnly": True}
        for host, inside in files.items()
    ]
    container = {
        "name": "opsctl",
        "image": image,
        "args": [*words, job.command, "--quiet", "--config", CONFIG],
        "env": [{"name": "OPSCTL_STATE_DIR", "value": STATE}],
        "envFrom": [{"secretRef": {"name": "opsctl", "optional": True}}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG, "subPath": Path(CONFIG).name, "readOnly": True},
            *volumes,
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 120,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": "opsctl"}},
            {"name": "state", "persistentVolumeClaim": {"claimName": "opsctl"}},
            *([{"name": "files", "secret": {"secretName": FILES}}] if files else []),
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    spec = {
        "schedule": job.schedule.expression,
        "timeZone": "Etc/UTC" if job.schedule.timezone == "UTC" else job.schedule.timezone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": LATE_SECONDS,
        "successfulJobsHistoryLimit": 1,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"spec": pod}}},
    }
    labels = {"app.kubernetes.io/name": "opsctl", "app.kubernetes.io/component": job.command}
    metadata = {"name": f"opsctl-{job.command}", "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata, "spec": spec}


def local_folders(config: "Config") -> dict[Path, Path]:
    """The local repositories here, and where the same configuration finds them in the container."""
    here = {name: folder_of(config.repository_url(name)) for name in config.repositories}
    there = {name: folder_of(settings.url) for name, settings in config.repositories.items()}
    return {path: Path(CONFIG).parent / (there[name] or path) for name, path in here.items() if path}


def named_files(config: "Config") -> dict[Path, Path]:
    """The files here that the configuration names, and where it finds them in the container."""
    bundles = [each.ca_bundle for each in config.repositories.values()]
    bundles += [each.ca_bundle for each in config.http.values()] + [each.ca_bundle for each in config.tls.values()]
    named = [
        *(each.password_file for each in config.databases.values()),
        *bundles,
        config.encryption.identity_file,
        config.signing.key_file,
        config.runbook.path,
    ]
    return {(config.folder / path.expanduser()).absolute(): Path(CONFIG).parent / path for path in named if path}


def _files_secret(config: "Config") -> str:
    """The line that puts those files where Kubernetes takes them from."""
    words = [f"--from-file={path}" for path in named_files(config)]
    return f"#   kubectl create secret generic {FILES} {shlex.join(words)}\n" if words else ""


def _escaped(text: str) -> str:
    """Compose reads variables into what it is given."""
    return text.replace("$", "$$")


def _yaml(documents: list[dict[str, Any]], head: str) -> str:
    import yaml

    text: str = yaml.safe_dump_all(documents, sort_keys=False, width=120)
    return f"# {head}\n{text}"
