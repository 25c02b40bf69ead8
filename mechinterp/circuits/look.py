"""How a picture of a circuit looks: theme, width, labels, colours, with or without legend and caption."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mechinterp.errors import MechinterpError, NamedEnum, member
from mechinterp.labels import role_name

_STYLE = """
.circuit text{font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;font-size:13px;fill:#1a1a1a}
.circuit .title{font-size:16px;font-weight:600}
.circuit .quiet{fill:#595959;font-size:12px}
.circuit .small{fill:#595959;font-size:11px}
.circuit .middle{text-anchor:middle}
.circuit .end{text-anchor:end}
.circuit .ground,.circuit .node{fill:#fff}
.circuit .rail{stroke:#dcdcdc;stroke-width:1.2;fill:none}
.circuit .node{stroke:#767676;stroke-width:1.2}
.circuit .idle{fill:#c4c4c4}
.circuit .line{fill:none}
.circuit .helps{stroke:#0072b2}
.circuit .hurts{stroke:#d55e00;stroke-dasharray:6 4}
.circuit .helps-head{fill:#0072b2}
.circuit .hurts-head{fill:#d55e00}
.circuit .pill{fill:#fff;stroke:#0072b2;stroke-width:1.2}
.circuit text.letter{font-size:12px}
.circuit text.port{font-size:10.5px}
.circuit text.on{fill:#fff}
.circuit .note{font-weight:600;font-size:12px}
"""
_DARK = """
.circuit text{fill:#ececec}
.circuit .quiet,.circuit .small{fill:#b0b0b0}
.circuit .ground,.circuit .node,.circuit .pill{fill:#16181c}
.circuit .rail{stroke:#34373d}
.circuit .node{stroke:#9a9a9a}
.circuit .idle{fill:#50545c}
.circuit .helps,.circuit .pill{stroke:#56b4e9}
.circuit .hurts{stroke:#f08a3c}
.circuit .helps-head{fill:#56b4e9}
.circuit .hurts-head{fill:#f08a3c}
.circuit text.on{fill:#16181c}
"""
_COLOUR = re.compile(r"#[0-9a-fA-F]{3,8}|[a-zA-Z]+|(rgb|hsl)a?\([0-9., %]+\)")


class Theme(NamedEnum):
    """The ground and the colours of a picture."""

    auto = "light or dark, as the reader's page is (prefers-color-scheme)"
    light = "light, also on a dark page: for papers"
    dark = "dark"


@dataclass(frozen=True)
class Look:
    """How a circuit is drawn.

    MechinterpError for an unknown theme, a width that is not positive, or a colour that CSS does not know the form of.
    """

    theme: Theme | str = Theme.auto
    legend: bool = True
    """Samples of widths and signs below the picture."""
    caption: bool = True
    """Two lines that say what widths and shades are."""
    width: float | int | None = None
    """Width of the document in pixels of CSS (96 to an inch; a column of a paper has 336). Columns are moved together
    as far as their names allow, and then all is made smaller. By default as wide as the columns need."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Names by role (as ``correct_label``), node (as ``1.h2.target``) or operation (as ``match``) of one's own."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """CSS colours by ``helps`` and ``hurts``, by node or by operation."""

    def __post_init__(self):
        object.__setattr__(self, "theme", member(Theme, self.theme))
        if self.width is not None and not 0 < self.width < float("inf"):
            raise MechinterpError(f"width is {self.width}; expected pixels, more than 0")
        for name, colour in self.colours.items():
            if not _COLOUR.fullmatch(colour):
                raise MechinterpError(f"colours: {name} is {colour!r}; expected a colour of CSS, such as '#0072b2'")

    def style(self) -> str:
        """The style sheet of the picture, which applies to nothing else."""
        dark = {Theme.light: "", Theme.dark: _DARK, Theme.auto: f"@media (prefers-color-scheme:dark){{{_DARK}}}\n"}
        own = [
            f".circuit .{name}{{stroke:{colour}}}\n.circuit .{name}-head{{fill:{colour}}}\n"
            for name, colour in ((self.own_class(each), colour) for each, colour in self.colours.items())
        ]
        return _STYLE + dark[member(Theme, self.theme)] + "".join(own)

    def own_class(self, *names: str) -> str:
        """The class of the first of these names that has a colour of its own; else empty."""
        for name in names:
            if name in self.colours:
                return name if name in ("helps", "hurts") else f"own-{list(self.colours).index(name)}"
        return ""

    def name(self, role: str) -> str:
        """The name of a role or operation in the picture."""
        return self.labels.get(role) or role_name(role)
