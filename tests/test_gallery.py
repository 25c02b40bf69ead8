"""The gallery has every picture that is committed, with a command and a verdict, and nothing that does not exist."""

import importlib.util
import re
from pathlib import Path

import pytest

from mechinterp.config.presets import PRESETS

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("_gallery", ROOT / "docs/_gallery.py")
assert _SPEC
assert _SPEC.loader
gallery = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(gallery)
ENTRIES = gallery.entries(gallery.SOURCE.read_text(encoding="utf-8"))


def test_every_committed_picture_is_in_the_gallery_and_no_other():
    shown = {picture.file for entry in ENTRIES for picture in entry.pictures}
    committed = {f"figures/{path.name}" for path in (ROOT / "analyses/figures").iterdir()}
    assert shown == committed


def test_every_row_of_the_tables_is_an_entry_with_a_command_and_a_verdict():
    rows = re.findall(
        r"^\| (?!figure|preset)[^-].*$|^\| \|.*$", gallery.SOURCE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(ENTRIES) == len([row for row in rows if row.count("|") == 5]) > 50
    for entry in ENTRIES:
        assert entry.verdict, entry
        assert entry.title, entry
        assert re.match(r"(python -m analyses\.\w+|mechinterp) ?", entry.command), entry


def test_commands_are_of_modules_that_exist():
    modules = {match[1] for entry in ENTRIES if (match := re.match(r"python -m analyses\.(\w+)", entry.command))}
    assert modules
    for module in modules:
        assert (ROOT / f"analyses/{module}.py").exists(), module


def test_every_preset_has_a_picture():
    pictured = {entry.figure for entry in ENTRIES if entry.section == "Presets" and entry.pictures}
    assert pictured == {*PRESETS}


def test_every_section_is_on_the_page():
    page = (ROOT / "docs/gallery.md").read_text(encoding="utf-8")
    assert re.findall(r"```\{gallery\} (.+)", page) == list(dict.fromkeys(entry.section for entry in ENTRIES))


@pytest.mark.parametrize(
    ("figure", "command", "title"),
    [
        ("3a, 4", "python -m analyses.x", "Figure 3a, 4"),
        ("A.3", "python -m analyses.x", "Figure A.3"),
        ("", "python -m analyses.path_patching RUN …", "Path patching"),
        ("H1–H3", "python -m analyses.x", "H1–H3"),
        ("unstated conventions", "python -m analyses.x", "Unstated conventions"),
        ("Olsson 2022, 1", "python -m analyses.x", "Olsson 2022, 1"),
        ("2a, by the race of 2024", "python -m analyses.x", "Figure 2a, by the race of 2024"),
        ("eq. 45", "python -m analyses.x", "Eq. 45"),
    ],
)
def test_titles(figure, command, title):
    assert gallery.Entry("s", figure, command, "v", ()).title == title


def test_the_same_is_the_command_above_and_pictures_are_several():
    text = "## A\n| figure | command `python -m analyses.…` | verdict | picture |\n|---|---|---|---|\n"
    text += "| 1 | `one --workers 2` | Yes. | [a](figures/a.png), [b](figures/b.png) |\n| 2 | the same | No. | |\n"
    first, second = gallery.entries(text)
    assert first.command == second.command == "python -m analyses.one --workers 2"
    assert [picture.name for picture in first.pictures] == ["a", "b"]
    assert (second.verdict, second.pictures) == ("No.", ())
