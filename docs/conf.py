"""How the documentation is built: Markdown pages (MyST) and the docstrings, without the network.

Docstrings are plain prose: an equation or an example is an indented block, `name` is code, |x| is a length.
`to_rest` makes reStructuredText of that, which is what Sphinx takes docstrings for.
"""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, get_type_hints

from sphinx.application import Sphinx

import mechinterp.studies.study  # noqa: F401  (autodoc would import it as a type checker does, which pydantic refuses)
from mechinterp.config.section import Section
from mechinterp.errors import NamedEnum

project = "mechinterp"
version = release = version_of("mechinterp")
copyright = "the mechinterp authors"  # Sphinx's name for it
sys.path.insert(0, str(Path(__file__).parent))  # for _gallery
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "_gallery"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css", "gallery.css"]
html_title = f"mechinterp {version}"
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 3
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "exclude-members": "model_config, MEASURES, ANALYSES"}


def to_rest(docstring: list[str], module: Any = None) -> list[str]:
    """The lines of a docstring: indented blocks are literal, bars escaped, and names of its module are links."""
    lines: list[str] = []
    literal = False
    for number, line in enumerate(docstring):
        indented, before = line.startswith("    "), docstring[number - 1] if number else ""
        if indented and not before.strip() and not literal and not _in_list(docstring[:number]):
            literal = True
            lines += ["::", ""]
        elif line.strip() and not indented:
            literal = False
        lines.append(line if literal else _prose(line, module))
    return lines


def _in_list(before: list[str]) -> bool:
    """Whether what is indented here goes on with an item of a list."""
    flush = [line for line in before if line.strip() and not line.startswith(" ")]
    return bool(flush) and flush[-1].startswith(("* ", "- "))


def _prose(line: str, module: Any) -> str:
    """|x| would be a substitution, and `name` is one of the docstring's module; ``literals`` stay."""
    parts = re.split(r"(``.*?``)", line)
    return "".join(
        part
        if part.startswith("``")
        else re.sub(r"`(\w+)`", lambda name: _link(name[1], module), part.replace("|", r"\|"))
        for part in parts
    )


def _link(name: str, module: Any) -> str:
    """To the function or class that a module calls `name`; to nothing if it is an argument."""
    thing = getattr(module, name, None)
    home = str(getattr(thing, "__module__", ""))
    return f":py:obj:`{name} <{home}.{thing.__qualname__}>`" if home.startswith("mechinterp.") else f"`{name}`"


def _process(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    parts = name.split(".")
    modules = (sys.modules.get(".".join(parts[:length])) for length in range(len(parts), 0, -1))
    lines[:] = to_rest(lines, next(filter(None, modules))) + _default(what, name)


def _default(what: str, name: str) -> list[str]:
    """What a config's field is where nothing is said."""
    module, kind, field = f"..{name}".rsplit(".", 2)
    section = getattr(sys.modules.get(module.removeprefix("..")), kind, None)
    if what != "attribute" or not isinstance(section, type) or not issubclass(section, Section):
        return []
    known = section.model_fields.get(field)  # a class variable is no field
    if known is None or known.is_required() or isinstance(known.default, Section):
        return []
    return ["", f"Default: ``{known.default!r}``.", ""]


def _sign(app: Sphinx, what: str, name: str, thing: Any, *rest: Any) -> tuple[str, None] | None:
    """Of configs, the fields say it all."""
    return ("", None) if what == "class" and isinstance(thing, type) and issubclass(thing, Section) else None


def _skip(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Members of an enum have their meaning as value."""
    return False if isinstance(thing, NamedEnum) else None


def _plain_annotations(section: type[Section]) -> None:
    """Shows a field's type without what is for pydantic."""
    plain = get_type_hints(section)
    section.__annotations__ = {name: plain[name] for name in section.__annotations__}
    for subclass in section.__subclasses__():
        _plain_annotations(subclass)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    _plain_annotations(Section)
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-skip-member", _skip)
