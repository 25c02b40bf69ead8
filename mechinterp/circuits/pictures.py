"""Pictures of circuits as files: SVG, a page of HTML, PNG or PDF."""

from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory

from mechinterp.files import replace_bytes, replace_text, require_ending


class PictureFormat(Enum):
    """The format of a picture of a circuit, by the ending of its file."""

    svg = "a drawing, whose edges and nodes say what they are under the pointer"
    html = "a page with that drawing"
    png = "pixels, two to one of CSS"
    pdf = "a page of its size, with its fonts"


def picture_format(path: Path) -> PictureFormat:
    """The format that a file's ending names; MechinterpError for another ending."""
    endings = (f".{each.name}" for each in PictureFormat)
    return PictureFormat[require_ending(path, *endings).suffix.removeprefix(".").lower()]


def require_drawing(path: Path) -> Path:
    """The path, if a picture of the format that it names can be made; to be asked before anything is measured."""
    if picture_format(path) in (PictureFormat.png, PictureFormat.pdf):
        from mechinterp.pictures import require_export  # imports plotly, which takes a second

        require_export()
    return path


def write_picture(svg: str, path: Path) -> Path:
    """Write a drawing of `svg.to_svg` or `svg.film_strip` in the format that the path names, in place of what is there.

    PNG and PDF are made by the extra ``export`` (kaleido) and a Chromium, and are light (`look.Theme`). MechinterpError
    for another ending, where these are missing, and for a path that cannot be written.
    """
    form = picture_format(path)
    if form is PictureFormat.svg:
        replace_text(path, svg)
    elif form is PictureFormat.html:
        replace_text(path, _page(svg))
    else:
        from mechinterp.pictures import framed, write_pictures

        with TemporaryDirectory() as folder:
            (made,) = write_pictures(framed(svg), Path(folder) / f"circuit{path.suffix.lower()}", [form.name])
            replace_bytes(path, made.read_bytes())
    return path


def _page(svg: str) -> str:
    title = svg[svg.index("<title>") + 7 : svg.index("</title>")]
    style = "body{margin:0;background:Canvas;color-scheme:light dark}"
    style += "svg{display:block;max-width:100%;height:auto;margin:auto}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>\n<body>{svg}</body></html>\n'
    )
