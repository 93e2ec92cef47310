"""A Ceph cluster of one monitor, one disk in a file and the S3 gateway, from Debian's packages; needs root."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool", "ceph-authtool")
DISK_BYTES = 8 << 30
READY_SECONDS = 120

CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {folder}/keyring
run_dir = {folder}
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
log_file = {folder}/$name.log
ms_bind_ipv6 = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
[mon.a]
mon_data = {folder}/mon
[osd.0]
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_create = true
bluestore_block_size = {disk}
osd_memory_target = 939524096
[client.rgw]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port}
"""

CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
    "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
}


def missing() -> str | None:
    """What keeps Ceph from running here, if anything."""
    if os.geteuid() != 0:
        return "Ceph needs root here"
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    packages = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr"
    return f"Ceph is not complete here ({', '.join(lacking)}): {packages}" if lacking else None


@contextmanager
def running(*, access_key: str, secret_key: str) -> Iterator[str]:
    """The gateway's address, with one user; everything is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="ceph", dir="/tmp") as name,
        ExitStack() as servers,
    ):  # paths of sockets are short
        folder = Path(name)
        for each in ("mon", "osd", "rgw"):
            (folder / each).mkdir()
        mon_v2, mon_v1, port = _free_ports(3)
        fsid, configuration = str(uuid.uuid4()), folder / "ceph.conf"
        configuration.write_text(
            CONFIGURATION.format(fsid=fsid, folder=folder, mon_v1=mon_v1, mon_v2=mon_v2, port=port, disk=DISK_BYTES)
        )
        cluster = _Cluster(folder, {**os.environ, "CEPH_CONF": str(configuration), "HOME": str(folder)})
        for entity, capabilities in CAPABILITIES.items():
            caps = [word for kind, rule in capabilities.items() for word in ("--cap", kind, rule)]
            create = [] if (folder / "keyring").exists() else ["--create-keyring"]
            cluster.run("ceph-authtool", folder / "keyring", *create, "--gen-key", "-n", entity, *caps)
        addresses = f"[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]"
        cluster.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, folder / "monmap")
        cluster.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", folder / "monmap", "--keyring", folder / "keyring")
        cluster.start(servers, "ceph-mon", "-f", "-i", "a")
        disk = str(uuid.uuid4())
        cluster.run("ceph", "osd", "new", disk)
        cluster.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        cluster.start(servers, "ceph-osd", "-f", "-i", "0")
        cluster.start(servers, "radosgw", "-f", "-n", "client.rgw")
        endpoint = f"http://127.0.0.1:{port}"
        keys = (f"--access-key={access_key}", f"--secret-key={secret_key}")
        cluster.run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", *keys)
        _wait_for(endpoint)
        yield endpoint


class _Cluster:
    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment

    def run(self, *command: object) -> None:
        done = subprocess.run(
            [str(word) for word in command],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=READY_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr[-2000:]}")

    def start(self, servers: ExitStack, *command: str) -> None:
        """In the foreground, so that it can be ended by its own process id."""
        with (self._folder / f"{command[0]}.output").open("wb") as output:
            process = subprocess.Popen(
                command, env=self._environment, stdout=output, stderr=output, start_new_session=True
            )
        servers.callback(process.wait)
        servers.callback(process.kill)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for(endpoint: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
