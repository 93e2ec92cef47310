"""What the site needs besides the pages, which are written to be read on GitHub: see mkdocs.yml."""  # noqa: INP001

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)((?:#[^)\s]*)?\))")
STEP = re.compile(r"^(```+)(sh|text) (observe|change|danger|manual)\b([^\n]*)$", re.MULTILINE)
HOME = {"README.md": "index.md", "docs/index.md": "index.md"}
"""The README is for GitHub; the site's home is the index."""


def on_files(files: Any, *, config: Any) -> Any:
    """Files beside docs/ that pages link to are part of the site, too."""
    linked = {"CHANGELOG.md", "CONTRIBUTING.md"}
    for page in files.documentation_pages():
        found = LINK.findall(page.content_string)
        linked |= {name for _, target, _ in found if (name := _outside(page.src_uri, target)) not in HOME}
    for name in sorted(linked):
        if name.endswith(".md"):
            text = _as_page((ROOT / name).read_text(encoding="utf-8"))
            files.append(File.generated(config, name, content=text))
        else:
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links that leave docs/ lead to the copies; a step of a runbook says what it is above its block."""
    source = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        name = _outside(source, match[2])
        target = HOME.get(name, name)
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(source) or '.')}{match[3]}"

    return STEP.sub(_titled, LINK.sub(moved, markdown))


def _outside(source: str, target: str) -> str:
    """The path from the repository's root that a link of a page leads to."""
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), target))


def _as_page(text: str) -> str:
    """A page of the repository's root as one of the site: what it calls ``docs/x`` is beside it."""
    return re.sub(r"\]\((?:docs/)([^)\s]+)\)", r"](\1)", text)


def _titled(match: re.Match[str]) -> str:
    words = " ".join([match[3], *match[4].split()]).replace('"', "'")
    return f'{match[1]}{match[2]} title="{words}"'
