"""The report in a browser, as a reader has it: from a file, without a network. Skipped where there is no Chromium."""

import csv
import re
from pathlib import Path

import pytest

from tests.report.conftest import PHONE, opened

_COLOURS = """async (div) => {
    const image = new Image();
    image.src = div.querySelector("image").getAttribute("href");
    await image.decode();
    const pen = Object.assign(document.createElement("canvas"), {width: 70, height: 70}).getContext("2d");
    pen.imageSmoothingEnabled = false;
    const cells = div.querySelector(".cells"), own = cells.style.visibility === "visible";
    pen.drawImage(own ? cells : image, 0, 0, 70, 70);
    const {data} = pen.getImageData(0, 0, 70, 70);
    const middle = (row, column) => 4 * (70 * (10 * row + 5) + 10 * column + 5);
    const colour = (at) => [...data.slice(at, at + 4)];
    return {own, colours: Array.from({length: 49}, (_, n) => colour(middle(Math.floor(n / 7), n % 7)))};
}"""


def _map(page) -> dict:
    """Layer 1's attention as it is seen: colours by query and key, and whether the page's own cells show it."""
    return _attention(page).evaluate(_COLOURS)


def _attention(page):
    return page.locator("figure[data-name=attention] .drawing").first


def _bring_into_view(page) -> None:
    """The attention maps at the foot of the window: what nobody sees is not drawn."""
    _attention(page).scroll_into_view_if_needed()
    page.wait_for_timeout(100)


def _seen(page) -> dict[str, object]:
    """Everything that follows the slider and is in view."""
    return {
        "step": page.text_content(".now"),
        "readout": page.locator(".readout dd").all_text_contents(),
        "circuit": page.inner_html("svg .panel"),
        "attention": _map(page)["colours"],
    }


def _all_differ(before: dict, after: dict) -> bool:
    return all(before[name] != after[name] for name in before)


def _settled(page, step: int) -> None:
    page.locator(".now", has_text=re.compile(f"^step {step}$")).wait_for()
    page.wait_for_timeout(100)


def test_dragging_the_slider_moves_everything_together(browser, report):
    with opened(browser, report) as page:
        assert page.text_content(".now") == "step 20"
        _bring_into_view(page)
        last = _seen(page)
        box = page.locator(".scrubber input").bounding_box()
        page.mouse.move(box["x"] + box["width"] - 8, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=8)
        _settled(page, 10)
        middle = _seen(page)
        page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2, steps=8)
        page.mouse.up()
        _settled(page, 0)
        assert _all_differ(last, middle)
        assert _all_differ(middle, _seen(page))


def test_a_map_in_motion_has_the_colours_that_plotly_gives_it_at_rest(browser, report):
    with opened(browser, report) as page:
        _bring_into_view(page)
        page.evaluate("() => { window.wait = setTimeout; setTimeout = () => 0; }")  # the slider never rests
        page.keyboard.press("Home")
        _settled(page, 0)
        moving = _map(page)
        assert moving["own"]
        page.evaluate("() => { setTimeout = window.wait; }")
        page.keyboard.press("ArrowRight")
        _settled(page, 2)
        page.keyboard.press("Home")
        page.locator("figure[data-name=attention] .cells >> nth=0").wait_for(state="hidden")
        resting = _map(page)
        assert not resting["own"]
        for ours, plotlys in zip(moving["colours"], resting["colours"], strict=True):
            assert ours == pytest.approx(plotlys, abs=4)
        assert len(set(map(tuple, resting["colours"]))) > 5


def test_the_mark_on_a_curve_is_at_the_step_shown(browser, report):
    """Where the mark lies, plotly's own axis finds the step again; in the aligned figure less the crossing, step 10."""
    with opened(browser, report) as page:
        for figure in ("order-parameters", "progress-measures", "accuracy", "loss", "runs-aligned"):
            drawing = page.locator(f"figure[data-name={figure}] .drawing:has(.cursor)")
            drawing.scroll_into_view_if_needed()
            for step, key in ((20, "End"), (0, "Home"), (2, "ArrowRight")):
                page.keyboard.press(key)
                _settled(page, step)
                at = drawing.evaluate(
                    """(div) => div._fullLayout.xaxis.p2d(
                        parseFloat(div.querySelector(".cursor").style.left) - div._fullLayout._size.l)"""
                )
                expected = step - (10 if figure == "runs-aligned" else 0)
                assert at == pytest.approx(expected, abs=0.05), figure


def test_the_dot_follows_the_order_parameters(browser, report):
    with opened(browser, report) as page:
        drawing = page.locator("figure[data-name=order-parameters] .drawing:has(.dot)")
        drawing.scroll_into_view_if_needed()
        page.keyboard.press("Home")
        _settled(page, 0)
        at = """(div) => {
            const {style} = div.querySelector(".dot"), {xaxis, yaxis, _size} = div._fullLayout;
            const left = xaxis.p2d(parseFloat(style.left) - _size.l), top = yaxis.p2d(parseFloat(style.top) - _size.t);
            return [left - div.data[0].x[0], top - div.data[0].y[0]];
        }"""
        assert drawing.evaluate(at) == pytest.approx([0, 0], abs=2e-3)


def test_keys_and_play(browser, report):
    with opened(browser, report, fragment="#step=6") as page:
        assert page.text_content(".now") == "step 6"
        for key, step in (("ArrowRight", 8), ("ArrowLeft", 6), ("End", 20), ("Home", 0), ("Shift+ArrowRight", 20)):
            page.keyboard.press(key)
            _settled(page, step)
        page.keyboard.press(" ")  # from the end, it begins anew
        page.locator(".now", has_text=re.compile("^step [0-4]$")).wait_for()
        page.keyboard.press(" ")
        stopped = page.text_content(".now")
        page.wait_for_timeout(1500)  # longer than a checkpoint is shown while it plays
        assert page.text_content(".now") == stopped
        page.click(".scrubber .transition")
        _settled(page, 10)


def test_keys_work_after_a_drag_as_well(browser, report):
    with opened(browser, report) as page:
        page.locator(".scrubber input").focus()
        for key, step in (("Home", 0), ("ArrowRight", 2), ("Shift+ArrowRight", 20), ("ArrowLeft", 18)):
            page.keyboard.press(key)
            _settled(page, step)
        page.keyboard.press(" ")
        page.locator(".scrubber .play[aria-label=Pause]").wait_for()


def test_whoever_moves_the_slider_ends_the_play(browser, report):
    with opened(browser, report) as page:
        page.click(".scrubber .play")
        page.locator(".scrubber .play[aria-label=Pause]").wait_for()
        box = page.locator(".scrubber input").bounding_box()
        page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
        _settled(page, 16)
        page.wait_for_timeout(1500)
        assert page.text_content(".now") == "step 16"
        assert page.get_attribute(".scrubber .play", "aria-label") == "Play"


def test_a_click_between_the_axes_goes_to_the_nearest_checkpoint(browser, report):
    with opened(browser, report) as page:
        area = page.locator("figure[data-name=accuracy] .nsewdrag").first
        area.scroll_into_view_if_needed()
        box = area.bounding_box()
        for part, step in ((0.31, 6), (0.72, 14), (0.01, 0)):  # of 20 steps; far from any curve
            page.mouse.click(box["x"] + part * box["width"], box["y"] + 0.55 * box["height"])
            _settled(page, step)
            page.wait_for_timeout(350)  # two clicks at once would be a double click, which resets the axes


def test_nothing_offers_to_send_the_numbers_away(browser, report):
    with opened(browser, report) as page:
        page.locator("figure[data-name=accuracy] .drawing").hover()
        titles = page.locator(".modebar-btn").evaluate_all("(all) => all.map((one) => one.dataset.title)")
        assert "Download plot as a PNG" in titles
        assert not [title for title in titles if "cloud" in title.lower() or "share" in title.lower()]


def test_a_change_of_scheme_keeps_what_a_reader_zoomed_to(browser, report):
    with opened(browser, report) as page:
        drawing = page.locator("figure[data-name=accuracy] .drawing")
        drawing.evaluate("(div) => Plotly.relayout(div, {'xaxis.range': [4, 12]})")
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(300)
        assert drawing.evaluate("(div) => div.layout.xaxis.range") == [4, 12]
        page.keyboard.press("Home")
        _settled(page, 0)
        drawing.scroll_into_view_if_needed()
        page.wait_for_timeout(200)
        assert drawing.locator(".cursor").is_hidden()


def test_numbers_can_be_taken_away(browser, report, tiny_run):
    with opened(browser, report) as page:

        def taken(figure: str, button: str = ".csv") -> str:
            with page.expect_download() as download:
                page.click(f"figure[data-name={figure}] {button}")
            return Path(download.value.path()).read_text(encoding="utf-8")

        rows = list(csv.DictReader(taken("attention").splitlines()))
        assert len(rows) == 11 * 2 * 7 * 8 / 2
        assert list(rows[0]) == ["step", "series", "key", "query", "attention"]
        _, cache = tiny_run.model(20).run_with_cache(tiny_run.task.sample("icl", 1).inputs)
        expected = cache["blocks.1.attn.hook_pattern"][0, 0, -1, 3]
        found = [r for r in rows if (r["step"], r["series"], r["query"]) == ("20", "layer 2", "target")][3]
        assert float(found["attention"]) == pytest.approx(float(expected), abs=0.51 / 254)

        rows = list(csv.DictReader(taken("accuracy").splitlines()))
        assert [row["accuracy"] for row in rows if row["series"] == "icl_accuracy"][5] == "0.5"
        assert len(taken("circuit").splitlines()) > 11
        assert taken("circuit", ".svg").startswith("<svg")


def test_names_stay_names(browser, report):
    with opened(browser, report) as page:
        assert page.text_content("h1") == "Run <b>odd & run.h5"
        assert page.locator("h1 b, figure img").count() == 0
        assert "<img src=x onerror=alert(1)>" in page.text_content("figure[data-name=runs-aligned] figcaption")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_whole_in_either_scheme(browser, report, scheme):
    with opened(browser, report, viewport=PHONE, has_touch=True, is_mobile=True, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        ink, ground = page.evaluate("['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])")
        assert (sum(map(int, ink[4:-1].split(","))) > sum(map(int, ground[4:-1].split(",")))) == (scheme == "dark")
        tick = page.locator("figure[data-name=accuracy] .xtick text").first
        assert tick.evaluate("(text) => getComputedStyle(text).fill") == ink
