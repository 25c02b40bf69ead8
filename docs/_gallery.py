"""The gallery: a card for every row of the tables in analyses/README.md, with its pictures, verdict and command.

That page is the only place where verdicts and commands are written down; the directive ``gallery`` reads it when the
documentation is built.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SOURCE = Path(__file__).resolve().parents[1] / "analyses" / "README.md"
PRESETS = Path(__file__).resolve().with_name("configuration.md")


@dataclass(frozen=True)
class Picture:
    """A picture of a card."""

    name: str
    file: str
    """Its path from the folder of analyses."""


@dataclass(frozen=True)
class Entry:
    """A card."""

    section: str
    figure: str
    """Which figure of a paper it is, or the name of a preset; nothing for what no paper has."""
    command: str
    verdict: str
    pictures: tuple[Picture, ...]

    @property
    def title(self) -> str:
        """What stands over the card; the analysis, where no paper has the figure."""
        if not self.figure:
            return self.command.split("analyses.")[-1].split()[0].replace("_", " ").capitalize()
        numbered = re.match(r"[0-9A-Z]\.?[0-9]?[a-e]?\b", self.figure) and not self.figure.startswith("H")
        if self.section == "Presets":
            return self.figure
        return f"Figure {self.figure}" if numbered else self.figure[0].upper() + self.figure[1:]


def entries(text: str) -> list[Entry]:
    """The rows of all tables of the page, in order; "the same" is the command of the row before.

    A row without command and verdict has those of the row above it that has its pictures, by name and file.
    """
    found, section, prefix, command = list[Entry](), "", "", ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").strip()
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if len(cells) != 4 or set(cells[0]) == {"-"}:
            continue
        if cells[3] == "picture":
            prefix = "python -m analyses." if "python -m analyses." in cells[1] else ""
            continue
        pictures = tuple(Picture(*each) for each in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", cells[3]))
        figure, verdict = cells[0].strip("`"), cells[2]
        if not cells[1]:
            above = next(each for each in found if {*pictures} <= {*each.pictures})
            command, verdict = above.command, above.verdict
        elif not cells[1].startswith("the same"):
            command = prefix + cells[1].split("`")[1]
        found.append(Entry(section, figure, command, verdict, pictures))
    return found


def presets(text: str) -> dict[str, str]:
    """What each preset is, from the table of docs/configuration.md."""
    return dict(re.findall(r"^\| `([a-z0-9-]+)` \| ([^|]+?) \|", text.partition("## Presets")[2], re.MULTILINE))


class Gallery(SphinxDirective):
    """The cards of one section of the page, by its heading."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The cards."""
        self.env.note_dependency(str(SOURCE))
        text = SOURCE.read_text(encoding="utf-8")
        chosen = [entry for entry in entries(text) if entry.section == self.arguments[0]]
        if not chosen:
            raise self.error(f"{SOURCE}: has no table under the heading {self.arguments[0]!r}")
        return [nodes.container("", *map(self._card, chosen), classes=["gallery"])]

    def _card(self, entry: Entry) -> nodes.Node:
        shown = [self._picture(entry, picture) for picture in entry.pictures]
        several = nodes.container("", *shown, classes=["pictures", *(["several"] if len(shown) > 1 else [])])
        title = nodes.paragraph("", "", nodes.strong(text=entry.title), classes=["card-title"])
        verdict = self.parse_text_to_nodes(entry.verdict)
        if what := presets(PRESETS.read_text(encoding="utf-8")).get(entry.figure):
            verdict = [nodes.paragraph("", f"{what[0].upper()}{what[1:]}.", classes=["what"]), *verdict]
        command = nodes.literal_block(entry.command, entry.command, language="sh")
        return nodes.container("", *([several] if shown else []), title, *verdict, command, classes=["card"])

    def _picture(self, entry: Entry, picture: Picture) -> nodes.Node:
        uri = f"../analyses/{picture.file}"
        image = nodes.image(uri=uri, alt=f"{entry.title}: {picture.name}", loading="lazy")
        link = nodes.container("", image, nodes.caption("", picture.name), classes=["picture"])
        return link


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("gallery", Gallery)
    return {"parallel_read_safe": True}
