"""The whole page as it was last approved, by pictures at a third of the size. Skipped where there is no Chromium.

Where a change of the page is meant, look at what the test wrote, and take it: the failure says how.
"""

import base64
from pathlib import Path

import pytest

from tests.report.conftest import opened

APPROVED = Path(__file__).parent / "screenshots"
LARGEST_SHARE, LARGEST_HEIGHT = 0.01, 0.02
"""Of blocks that differ, and by which heights may differ, in shares: other versions of a browser draw letters
differently."""

_DIFFERING = """async (urls) => {
    const side = 6, apart = 24;  // a block of 18 by 18 pixels of the page differs by its mean colour, of 255
    const means = await Promise.all(urls.map(async (url) => {
        const image = new Image();
        image.src = url;
        await image.decode();
        const {width, height} = image;
        const pen = Object.assign(document.createElement("canvas"), {width, height}).getContext("2d");
        pen.drawImage(image, 0, 0);
        const {data} = pen.getImageData(0, 0, width, height);
        const across = Math.floor(width / side), down = Math.floor(height / side);
        const blocks = Array.from({length: down}, () => new Float64Array(3 * across));
        for (let y = 0; y < down * side; y++)
            for (let x = 0; x < across * side; x++)
                for (let c = 0; c < 3; c++)
                    blocks[Math.floor(y / side)][3 * Math.floor(x / side) + c] +=
                        data[4 * (y * width + x) + c] / side ** 2;
        return {width, height, blocks, across};
    }));
    const [ours, theirs] = means, rows = Math.min(ours.blocks.length, theirs.blocks.length);
    let differing = 0;
    for (let row = 0; row < rows; row++)
        for (let block = 0; block < ours.across; block++)
            differing += [0, 1, 2].some((c) =>
                Math.abs(ours.blocks[row][3 * block + c] - theirs.blocks[row][3 * block + c]) > apart);
    return {sizes: means.map(({width, height}) => [width, height]), share: differing / rows / ours.across};
}"""


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_the_page_looks_as_it_was_approved(browser, report, width, tmp_path):
    """In the light and in the dark; and at no width does it scroll sideways."""
    with opened(browser, report, viewport={"width": width, "height": 900}, device_scale_factor=1 / 3) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(300)
            name = f"{width}-{scheme}.png"
            now = page.screenshot(full_page=True, path=tmp_path / name, animations="disabled", scale="device")
            assert (APPROVED / name).is_file(), f"look at {tmp_path / name}, and copy it to {APPROVED}"
            urls = [_url(now), _url((APPROVED / name).read_bytes())]
            found = page.evaluate(_DIFFERING, urls)
            (ours, theirs), share = found["sizes"], found["share"]
            take = f"if {tmp_path / name} is what is meant, copy it to {APPROVED}"
            assert ours[0] == theirs[0], take
            assert ours[1] == pytest.approx(theirs[1], rel=LARGEST_HEIGHT), take
            assert share <= LARGEST_SHARE, f"{share:.1%} differ; {take}"


def _url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
