"""Where a repository's bytes live: one module per kind of storage."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from opsctl.errors import ConfigurationError
from opsctl.storage.local import LocalStorage

Storage = LocalStorage


def open_storage(url: str) -> Storage:
    """The storage behind a repository's ``url``: a path or ``file://…``. Nothing is read or written yet."""
    if "://" not in url:
        return LocalStorage(Path(url))
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return LocalStorage(Path(unquote(parts.path)))
    raise ConfigurationError(
        f"There is no storage for {parts.scheme}:// addresses.", hint="A repository's url is a path or file:///path."
    )
