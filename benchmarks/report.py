"""How fluent a report is: its size, and how many checkpoints a second its slider shows in Chromium.

python -m benchmarks.report PAGE [PAGE …] [--rounds 5] [--json]

From the last, the slider goes through all checkpoints, the next one as soon as the page shows the last. An update takes
one picture of the screen at least, so that no page is faster than the screen (60 a second).
"""

import json
import os
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from analyses._common import run_analysis
from benchmarks.timing import machine
from mechinterp.errors import MechinterpError

SCREENS = {"desk": (1280, 900), "phone": (390, 844), "tall": (1280, 3000)}
_DRAG = """async () => {
    const scrubber = document.querySelector(".scrubber"), slider = scrubber.querySelector("input");
    const n = Number(slider.max) + 1, start = performance.now();
    for (let index = 0; index < n; index++) {
        const shown = new Promise((then) => scrubber.addEventListener("shown", then, { once: true }));
        slider.value = index;
        slider.dispatchEvent(new Event("input"));
        await shown;
    }
    return (1000 * n) / (performance.now() - start);
}"""


@dataclass
class Report:
    """Time the slider of reports."""

    pages: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Reports of runs."""
    rounds: int = 5
    """Rounds, each showing every page on every screen in turn."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        from playwright.sync_api import sync_playwright

        chromium = os.environ.get("BROWSER_PATH") or shutil.which("chromium")
        if chromium is None:
            raise MechinterpError("there is no Chromium: apt-get install chromium, or set BROWSER_PATH")
        rates: dict[str, list[float]] = {}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for _ in range(self.rounds):
                for path in self.pages:
                    for name, (width, height) in SCREENS.items():
                        page = browser.new_page(viewport={"width": width, "height": height})
                        page.goto(path.resolve().as_uri())
                        page.wait_for_selector("html.ready", state="attached")
                        rates.setdefault(f"{path.name}, {name}", []).append(page.evaluate(_DRAG))
                        page.close()
        result: dict[str, object] = {f"{path.name}, MB": round(path.stat().st_size / 1e6, 2) for path in self.pages}
        result |= {f"{name}, updates/s": round(statistics.median(each), 1) for name, each in rates.items()}
        result |= machine()
        print(json.dumps(result) if self.json else "\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    run_analysis(Report)
