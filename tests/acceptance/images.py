"""The images of the stack, without a registry: opsctl's from its Dockerfile, the public ones of this host's programs.

They carry the public names, so Dockerfile and compose.yaml are used as they are.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BASE, PYTHON = "trixie", "3.13"
CONTEXT = ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")

POSTGRES = """\
FROM local/postgres:15
USER 0
COPY entrypoint /entrypoint
RUN mkdir -p /var/lib/postgresql/data && busybox chown 70:70 /var/lib/postgresql/data \\
    && busybox chmod 700 /var/lib/postgresql/data
USER 70
ENV PGDATA=/var/lib/postgresql/data
"""
ENTRYPOINT = """\
#!/bin/sh
# What the official image does with its variables, and with its folder of scripts.
set -e
cd /tmp
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
    initdb --no-sync --username="$POSTGRES_USER" --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256 \\
        --encoding=UTF8
    rm /tmp/password
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    postgres -c listen_addresses= -c unix_socket_directories=/tmp & server=$!
    until psql -h /tmp -U "$POSTGRES_USER" -d postgres -c "create database $POSTGRES_DB"; do sleep 0.2; done
    for script in /docker-entrypoint-initdb.d/*.sql; do
        psql -h /tmp -U "$POSTGRES_USER" -d "$POSTGRES_DB" -v ON_ERROR_STOP=1 -f "$script"
    done
    kill -INT $server
    wait $server
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off
"""


def _mirror() -> str:
    """Where this machine has its own packages from."""
    known = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    texts = [path.read_text(encoding="utf-8") for path in known if path.is_file()]
    found = re.search(r"^(?:URIs: +|deb +(?:\[.*?\] +)?)(http\S+)", "\n".join(texts), re.MULTILINE)
    assert found, "this machine has no source of packages"
    return found[1]


def build_opsctl(engine: Any, kept: Path, work: Path) -> None:
    """The image ``opsctl``. The base, and the wheels, are in ``kept`` from the first run on."""
    with ThreadPoolExecutor() as pool:  # the one waits for the network while the other unpacks
        wheels, base = pool.submit(_wheels, kept), pool.submit(_base, kept)
    with base.result().open("rb") as file:
        _run(["docker", "import", "-", f"debian:{BASE}-slim"], env=engine.environment, stdin=file)
    for name in CONTEXT:
        shutil.copy(ROOT / name, work)
    shutil.copytree(ROOT / "opsctl", work / "opsctl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(wheels.result(), work / "wheels")
    # Where its own network cannot be had: this host's, and wheels that lie there.
    _run(
        [
            "docker",
            "build",
            "--network=host",
            "--build-arg=PIP_NO_INDEX=1",
            "--build-arg=VERSION=1.2.3",
            "-t",
            "opsctl",
            ".",
        ],
        env={**engine.environment, "DOCKER_BUILDKIT": "0"},
        cwd=work,
    )


def _base(kept: Path) -> Path:
    """Debian as an archive: made of this machine's packages."""
    base = kept / f"{BASE}.tar"
    if not base.exists():
        partial = base.with_suffix(".partial.tar")
        _run(["mmdebstrap", "--variant=minbase", "--quiet", BASE, partial, _mirror()])
        partial.rename(base)
    return base


def _wheels(kept: Path) -> Path:
    """What the image's Python needs, as wheels; downloaded by this one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["serve"]]
    wanted += project["build-system"]["requires"]
    folder, mark = kept / "wheels", kept / "wheels.json"
    written = json.dumps([wanted, (ROOT / "constraints.txt").read_text()])
    if not mark.exists() or mark.read_text() != written:
        shutil.rmtree(folder, ignore_errors=True)
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (34, 28, 17)]
        abis = [f"--abi={abi}" for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")]
        _run(
            [
                sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--python-version={PYTHON}",
                "--implementation=cp", *abis, *platforms, "--platform=manylinux2014_x86_64", f"--dest={folder}",
                f"--constraint={ROOT / 'constraints.txt'}", *wanted,
            ],
            env={**os.environ, "HOME": str(kept)},  # whatever pip starts may write there
        )  # fmt: skip
        mark.write_text(written)
    return folder


def make_public_images(engine: Any, work: Path, *, rclone: Path, prometheus: Path) -> None:
    """PostgreSQL, rclone and Prometheus under the names compose.yaml has for them."""
    module = sys.modules["engine"]
    (work / "Dockerfile").write_text(POSTGRES)
    (work / "entrypoint").write_text(ENTRYPOINT)
    (work / "entrypoint").chmod(0o755)
    _run(["docker", "build", "--tag=postgres:17", "."], env={**engine.environment, "DOCKER_BUILDKIT": "0"}, cwd=work)
    for name, program in (("rclone/rclone:1", rclone), ("prom/prometheus:v3.5.0", prometheus)):
        root = module._Root()
        root.add(f"bin/{program.name}", program)
        for library in sorted(module._libraries([program])) if program == prometheus else ():
            root.add(library)
        root.folder("tmp", 0o1777)
        root.folder("prometheus", 0o777)
        user = "65534" if program == prometheus else "0"
        module._import(engine, name, root.content(), f'ENTRYPOINT ["/bin/{program.name}"]', f"USER {user}")


def _run(words: list[Any], **options: Any) -> None:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=900, check=False, **options
    )
    assert done.returncode == 0, f"{words[:3]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
