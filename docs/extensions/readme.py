"""Parts of the README in the pages: it is the one place where they are written.

A line `README: Heading` in a page is replaced by that section of the README, one heading level higher. Links to another such
section lead to the page that shows it; other files of the repository are named, since the site does not hold them.
"""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[2]
PLACE = re.compile(r"^README: (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def sections(text: str) -> dict[str, str]:
    """Split a Markdown text at its headings of the first two levels: heading -> what stands below it."""
    blank = FENCED.sub(lambda code: " " * len(code[0]), text)  # a comment in a shell example is no heading
    starts = [found for found in HEADING.finditer(blank) if len(found[1]) <= 2]
    ends = [*(found.start() for found in starts[1:]), len(text)]
    return {found[2]: text[found.end() : end].strip("\n") for found, end in zip(starts, ends, strict=True)}


def insert(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the sections of the README into a page."""
    if not PLACE.search(source[0]):
        return
    readme = ROOT / "README.md"
    app.env.note_dependency(str(readme))
    parts = sections(readme.read_text(encoding="utf-8"))
    pages = _pages(Path(app.srcdir))

    def part(place: re.Match[str]) -> str:
        if place[1] not in parts:
            raise ExtensionError(f"{page}: README.md has no section {place[1]!r}; it has {', '.join(parts)}")
        raised = re.sub(r"^###", "##", parts[place[1]], flags=re.MULTILINE)
        return LINK.sub(lambda link: _linked(link, page, pages), raised)

    source[0] = PLACE.sub(part, source[0])


def _linked(link: re.Match[str], page: str, pages: dict[str, str]) -> str:
    picture, words, target = link.groups()
    up = "../" * (page.count("/") + 1)
    if ":" in target:
        return link[0]
    if picture:
        return f"![{words}]({up}{target})"
    if target.startswith("#"):
        shown = pages.get(target[1:])
        return f"[{words}](/{shown}.md)" if shown else f"{words} (in the README)"
    path = target.partition("#")[0]
    return f"`{path}`" if words == path else f"{words} (`{path}` in the repository)"


def _pages(folder: Path) -> dict[str, str]:
    """Return the page that shows each section of the README, by the section's anchor."""
    shown = {}
    for path in folder.rglob("*.md"):
        for place in PLACE.finditer(path.read_text(encoding="utf-8")):
            shown[re.sub(r"[^\w-]", "", place[1].lower().replace(" ", "-"))] = (
                path.relative_to(folder).with_suffix("").as_posix()
            )
    return shown


def setup(app: Sphinx) -> dict[str, Any]:
    """Let Sphinx call `insert` for every page."""
    app.connect("source-read", insert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
