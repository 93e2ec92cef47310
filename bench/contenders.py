"""Who is compared: opsctl and its peers, each with what it needs and how what it leaves goes away."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getuser
from pathlib import Path

from bench.data import DATABASE, fill_repository
from bench.measure import Command, Contender
from bench.servers import S3, S3_FORGETS_SECONDS
from opsctl.encryption import new_identity
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.cluster import Cluster

OPSCTL = (sys.executable, "-m", "opsctl")
ZSTD_LEVEL = 3
"""What opsctl compresses with unless told otherwise; the peers that can do the same."""

HELLO = '''import typer

app = typer.Typer()


@app.command()
def hello(name: str = "world") -> None:
    """Greet somebody."""
    print(f"Hello {name}")


@app.command()
def goodbye(name: str = "world") -> None:
    """Leave."""
    print(f"Goodbye {name}")


app()
'''


@dataclass(frozen=True)
class Workplace:
    """What the contenders work with: a folder, a filled server, its programs, perhaps an S3 service."""

    folder: Path
    cluster: Cluster
    binaries: Binaries
    jobs: int
    s3: S3 | None = None

    def program(self, name: str) -> str:
        return str(self.binaries.path(name))

    @property
    def url(self) -> str:
        return self.cluster.url(DATABASE)

    def opsctl(self, name: str, repositories: Mapping[str, str], settings: str = "", more: str = "") -> list[str]:
        """A configuration of its own: how to call opsctl with it. ``{}`` stands for the command."""
        file = self.folder / f"{name}.toml"
        parts = [f'[databases.{DATABASE}]\nurl = "{self.url}"\n{settings}\n{more}']
        parts += [f'[repositories.{key}]\nurl = "{url}"\n' for key, url in repositories.items()]
        if self.s3 is not None:
            parts = [part + f'endpoint_url = "{self.s3.url}"\n' if "s3://" in part else part for part in parts]
        file.write_text("\n".join(parts))
        return [*OPSCTL, "{}", "--config", str(file)]


def _called(template: Sequence[str], *words: str) -> list[str]:
    place = template.index("{}")
    return [*template[:place], *words, *template[place + 1 :]]


def backups(place: Workplace) -> Iterator[Contender]:
    """Backups of opsctl to a folder and in every other way it has, then those of the peers."""
    yield from _opsctl_backups(place)
    yield from _dumps(place)
    yield from _deduplicating(place)
    yield from _of_the_cluster(place)


def _opsctl_backups(place: Workplace) -> Iterator[Contender]:
    folder = place.folder
    key, _ = new_identity(datetime.now(UTC))
    encrypted = f'[encryption]\nrecipients = ["{key}"]\n'
    kinds = (
        ("opsctl backup", "local", "", ""),
        ("opsctl backup, encrypted", "encrypted", "", encrypted),
        ("opsctl backup, facts none", "nofacts", 'facts = "none"', ""),
        ("opsctl backup, facts content", "content", 'facts = "content"', ""),
        (f"opsctl backup, jobs = {place.jobs}", "jobs", f"jobs = {place.jobs}", ""),
    )
    for name, repository, settings, more in kinds:
        template = place.opsctl(repository, {repository: str(folder / repository)}, settings, more)
        yield Contender(name, _called(template, "backup", "--quiet"), output=folder / repository)
    both = folder / "both"
    template = place.opsctl("two", {"one": str(both / "one"), "two": str(both / "two")})
    yield Contender("opsctl backup, two repositories", _called(template, "backup", "--quiet"), output=both)
    if place.s3 is not None:
        template = place.opsctl("s3", {"s3": "s3://bench/opsctl"})
        yield Contender(
            "opsctl backup, S3",
            _called(template, "backup", "--quiet"),
            prepare=[["sleep", str(S3_FORGETS_SECONDS + 0.5)]],
            output=place.s3.folder / "opsctl",
            environment=place.s3.environment,
        )


def _dumps(place: Workplace) -> Iterator[Contender]:
    folder, dump = place.folder, [place.program("pg_dump"), "--dbname", place.url]
    custom, directory = folder / "custom.dump", folder / "directory"
    yield Contender("pg_dump -Fc -Z0 > /dev/null", [*dump, "-Fc", "-Z0"], discards=True)
    yield Contender("pg_dump -Fc", [*dump, "-Fc", "--file", str(custom)], output=custom)
    yield Contender("pg_dump -Fc -Z1", [*dump, "-Fc", "-Z1", "--file", str(custom)], output=custom)
    parallel = [*dump, "-Fd", f"-j{place.jobs}", "--file", str(directory)]
    yield Contender(f"pg_dump -Fd -j{place.jobs}", parallel, output=directory)
    for program in ("gzip", "zstd -T0"):
        output = folder / f"plain.{program.split()[0]}"
        yield Contender(
            f"pg_dump | {program}",
            _shell(f"{shlex.join(dump)} | {program} > {shlex.quote(str(output))}"),
            output=output,
            needs=program.split()[0],
        )


def _deduplicating(place: Workplace) -> Iterator[Contender]:
    """Restic and borg, each into a new repository, from the stream that opsctl compresses too."""
    folder = place.folder
    stream = shlex.join([place.program("pg_dump"), "--dbname", place.url, "-Fc", "-Z0"])
    repository = folder / "restic"
    yield Contender(
        "pg_dump | restic",
        _shell(f"{stream} | restic --quiet backup --stdin --stdin-filename bench.dump"),
        prepare=[["restic", "--quiet", "init"]],
        output=repository,
        environment={"RESTIC_REPOSITORY": str(repository), "RESTIC_PASSWORD": "bench"},
        needs="restic",
    )
    repository = folder / "borg"
    borg = {"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "BORG_BASE_DIR": str(folder / "borg-home")}
    init: Command = ["borg", "init", "--encryption=none", repository]
    yield Contender(
        "pg_dump | borg",
        _shell(f"{stream} | borg create --compression zstd,{ZSTD_LEVEL} {shlex.quote(str(repository))}::bench -"),
        prepare=[init],
        output=repository,
        environment=borg,
        needs="borg",
    )
    config = folder / "borgmatic.yaml"
    config.write_text(_borgmatic(folder, repository))
    yield Contender(
        "borgmatic",
        ["borgmatic", "--syslog-verbosity", "-1", "--config", config, "create"],
        prepare=[["mkdir", "-p", folder / "nothing"], init],
        output=repository,
        environment={**borg, "PGHOST": str(place.cluster.socket_folder), "PGUSER": place.cluster.user},
        needs="borgmatic",
    )


def _borgmatic(folder: Path, repository: Path) -> str:
    return f"""location:
    source_directories: [{folder / "nothing"}]
    repositories: [{repository}]
    read_special: true
    borgmatic_source_directory: {folder / "borgmatic"}
storage:
    compression: zstd,{ZSTD_LEVEL}
    unknown_unencrypted_repo_access_is_ok: true
hooks:
    postgresql_databases:
        - name: {DATABASE}
          format: custom
          options: --compress=0
"""


def _of_the_cluster(place: Workplace) -> Iterator[Contender]:
    """Those that copy the server's files, all databases at once."""
    folder, cluster = place.folder, place.cluster
    repository = folder / "pgbackrest"
    pgbackrest = [
        *("pgbackrest", "--stanza=bench", "--config=/dev/null", "--log-level-console=error", "--log-level-file=off"),
        *(f"--repo1-path={repository}", f"--lock-path={folder / 'pgbackrest-lock'}", f"--pg1-path={cluster.data}"),
        *(f"--pg1-socket-path={cluster.socket_folder}", f"--pg1-port={cluster.port}", f"--pg1-user={cluster.user}"),
    ]
    how = ["--type=full", "--no-archive-check", "--start-fast", f"--process-max={place.jobs}", "--compress-type=zst"]
    yield Contender(
        f"pgBackRest, process-max={place.jobs}",
        [*pgbackrest, *how, "backup"],
        prepare=[[*pgbackrest, "--no-online", "stanza-create"]],
        output=repository,
        needs="pgbackrest",
    )
    home = folder / "barman"
    config, incoming = folder / "barman.conf", home / "bench" / "incoming"
    config.write_text(_barman(place, home))
    psql = [place.program("psql"), "--quiet", "--no-psqlrc", "--output=/dev/null", cluster.url()]
    archive = f"alter system set archive_command = 'cp %p {incoming}/%f'"
    yield Contender(
        "Barman",
        ["barman", "--quiet", "--config", config, "backup", "bench"],
        prepare=[
            _shell(f"mkdir -p {shlex.quote(str(incoming))}; chmod -R 777 {shlex.quote(str(home))}"),
            [*psql, "-c", archive, "-c", "select pg_reload_conf()", "-c", "select pg_create_restore_point('bench')"],
            [*psql, "-c", "select pg_switch_wal()"],
            _shell(
                f"for i in $(seq 99); do compgen -G {shlex.quote(str(incoming))}'/*' && break; sleep .1; done; sleep 1"
            ),
            ["barman", "--quiet", "--config", config, "archive-wal", "bench"],
        ],
        clean=[[*psql, "-c", "alter system reset archive_command", "-c", "select pg_reload_conf()"]],
        output=home,
        needs="barman",
    )


def _barman(place: Workplace, home: Path) -> str:
    login = f"host={place.cluster.socket_folder} port={place.cluster.port} user={place.cluster.user}"
    return f"""[barman]
barman_home = {home}
barman_user = {getuser()}
log_file = {place.folder / "barman.log"}
[bench]
description = bench
conninfo = {login} dbname=postgres
streaming_conninfo = {login}
backup_method = postgres
archiver = on
streaming_archiver = off
immediate_checkpoint = true
path_prefix = {place.binaries.folder}
"""


def restores(place: Workplace) -> Iterator[Contender]:
    """The way back: of a backup that is there, and of the plain archive of the same database. And verifying one."""
    folder = place.folder
    template = place.opsctl("kept", {"kept": str(folder / "kept")})
    archive, target = folder / "kept.dump", "restored"
    url = place.cluster.url(target)
    psql = [place.program("psql"), "--quiet", "--no-psqlrc", "--output=/dev/null", place.cluster.url()]
    create, drop = [[*psql, "-c", f"create database {target}"]], [[*psql, "-c", f"drop database if exists {target}"]]
    into = ["restore", "latest", "--into", target, "--accept-unknown-disk", "--quiet"]
    for jobs in ("", " --jobs 1", " --jobs 4"):
        yield Contender(f"opsctl restore{jobs}", _called(template, *into, *jobs.split()), clean=drop)
    for jobs in ("1", "2", "4"):
        command = [place.program("pg_restore"), "--exit-on-error", f"-j{jobs}", "--dbname", url, str(archive)]
        yield Contender(f"pg_restore -j{jobs}", command, prepare=create, clean=drop)
    swap = ["restore", "latest", "--yes", DATABASE, "--accept-unknown-disk", "--json", "--quiet"]
    yield Contender(
        "opsctl restore, in place",
        _called(template, *swap),
        clean=[_called(template, "restore", "--forget-previous", "--yes", DATABASE, "--quiet")],
        says={"outage_seconds": "result.outage_seconds"},
    )
    yield Contender("opsctl verify", _called(template, "verify", "latest", "--quiet"))


def kept_backup(place: Workplace) -> list[Command]:
    """What makes the backup and the archive that :func:`restores` read."""
    template = place.opsctl("kept", {"kept": str(place.folder / "kept")})
    dump = [place.program("pg_dump"), "-Fc", "-Z0", "--dbname", place.url, "--file", str(place.folder / "kept.dump")]
    return [_called(template, "backup", "--quiet"), dump]


def many_tables(place: Workplace) -> Iterator[Contender]:
    """A database that is wide, not deep."""
    names = {"opsctl backup", "opsctl backup, facts none", "pg_dump -Fc", "pg_dump -Fc -Z0 > /dev/null"}
    yield from (each for each in backups(place) if each.name in names)


def lists(folder: Path, s3: S3 | None, count: int) -> Iterator[Contender]:
    """Commands over a repository of many backups, in a folder and in a bucket."""
    crowd = folder / "crowd"
    crowd.mkdir()
    fill_repository(crowd, count)
    local = crowd / "opsctl.toml"
    commands = (
        ("list", ["list"]),
        ("list --json", ["list", "--json"]),
        ("prune --dry-run", ["prune", "--dry-run"]),
    )
    for name, words in commands:
        yield Contender(f"opsctl {name}, {count:,} backups", [*OPSCTL, *words, "--config", str(local)])
    if s3 is not None:
        (crowd / "backups").rename(s3.folder / "crowd")
        (crowd / "backups").symlink_to(s3.folder / "crowd")
        remote = crowd / "s3.toml"
        url = f'url = "s3://bench/crowd"\nendpoint_url = "{s3.url}"\n'
        remote.write_text(local.read_text().replace('url = "./backups"\n', url))
        again = [*OPSCTL, "list", "--config", str(remote)]
        manifests = folder / "state" / "manifests-1.sqlite"
        yield Contender(
            f"opsctl list, {count:,} backups in S3, the first time",
            again,
            prepare=[["rm", "-f", manifests]],
            environment=s3.environment,
        )
        yield Contender(f"opsctl list, {count:,} backups in S3", again, environment=s3.environment)


def starts(folder: Path) -> Iterator[Contender]:
    """Commands that do next to nothing, beside the smallest program with the same library."""
    hello = folder / "hello.py"
    hello.write_text(HELLO)
    config = folder / "start.toml"
    config.write_text(f'[databases.{DATABASE}]\nurl = "postgresql://127.0.0.1:1/{DATABASE}"\n')
    yield Contender("Typer's hello --help", [sys.executable, str(hello), "--help"])
    yield Contender("opsctl --help", [*OPSCTL, "--help"])
    yield Contender("opsctl config show", [*OPSCTL, "config", "show", "--config", str(config)])


def _shell(line: str) -> list[str]:
    return ["bash", "-o", "pipefail", "-c", line]
