"""Containers made for one purpose: without network and rights, and gone with everything they wrote."""

from collections.abc import Sequence
from pathlib import Path

from opsctl.errors import ServiceFailed
from opsctl.services import Selector, Service
from opsctl.services.docker import Docker, mapped_errors

LABEL = "opsctl.throwaway"
LOW_SHARE = 128
"""Of the processors, where others have 1024: what else runs there goes first."""
MOST_PROCESSES = 512


class ThrowawayContainers:
    """Those of one engine. The engine removes one by itself when it ends; :meth:`remove` ends it."""

    def __init__(self, docker: Docker) -> None:
        self.docker = docker

    def has_image(self, image: str) -> bool:
        from docker.errors import NotFound

        with mapped_errors(f"describe the image {image}"):
            try:
                self.docker.api.inspect_image(image)
            except NotFound:
                return False
            return True

    def pull(self, image: str) -> None:
        """Get an image from its registry. Raises ServiceFailed."""
        with mapped_errors(f"pull {image}"):
            for progress in self.docker.api.pull(image, stream=True, decode=True):
                if "error" in progress:
                    raise ServiceFailed(f"Docker could not pull {image}: {progress['error']}.")

    def data_folder(self) -> Path | None:
        """Where the engine keeps what containers write, if that is a folder of this host."""
        with mapped_errors("be asked where its files are"):
            folder = Path(self.docker.api.info().get("DockerRootDir") or "/nowhere")
        return folder if folder.is_dir() else None

    def start(
        self, name: str, image: str, command: Sequence[str], *, user: str, shared: Path, memory_bytes: int | None
    ) -> Service:
        """Start ``command`` as ``user``, or as the image's own; ``shared`` is the same folder on both sides.

        Raises ServiceFailed, also where the engine does not see this host's files.
        """
        from docker.types import Mount

        api = self.docker.api
        with mapped_errors(f"start a container of {image}"):
            options = api.create_host_config(
                auto_remove=True,
                network_mode="none",
                mounts=[Mount(str(shared), str(shared), type="bind")],  # unlike a bind, it makes no folder
                cap_drop=["ALL"],
                security_opt=["no-new-privileges", "label=disable"],
                cpu_shares=LOW_SHARE,
                pids_limit=MOST_PROCESSES,
                mem_limit=memory_bytes,
            )
            own = (api.inspect_image(image).get("Config") or {}).get("User")
            api.create_container(
                image,
                name=name,
                entrypoint=list(command),
                command=[],
                user=own or user,
                labels={LABEL: name},
                host_config=options,
            )
            api.start(name)
        found = self.find(name)
        if found is None:
            raise ServiceFailed(f"The container of {image} has ended at once.")
        return found

    def find(self, name: str) -> Service | None:
        return next(iter(self.docker.find(Selector(name, container=name))), None)

    def kill(self, name: str) -> None:
        """End it by force; one that has ended already is fine."""
        from docker.errors import APIError

        with mapped_errors(f"end {name}"):
            try:
                self.docker.api.kill(name)
            except APIError as error:
                if error.response.status_code not in {404, 409}:
                    raise

    def remove(self, name: str) -> None:
        """End and remove it, with its volumes; one that is gone, or going, is fine."""
        from docker.errors import APIError

        with mapped_errors(f"remove {name}"):
            try:
                self.docker.api.remove_container(name, v=True, force=True)
            except APIError as error:
                if error.response.status_code not in {404, 409}:
                    raise
