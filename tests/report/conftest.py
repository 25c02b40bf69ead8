"""A page of a tiny run and a browser, started once for all tests of the report in a browser."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

import mechinterp as mi
from tests.helpers import copied

CHROMIUM = os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("chromium-browser")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="package")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or set BROWSER_PATH")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture(scope="package")
def plain_page(tiny_run, tmp_path_factory) -> Path:
    """The page of the tiny run. The tables of its figures are then kept beside the run."""
    return mi.write_report(tiny_run, mi.measure(tiny_run, n_sequences=20), tmp_path_factory.mktemp("plain") / "r.html")


@pytest.fixture(scope="package")
def report(tiny_run, plain_page, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run = copied(tiny_run, folder / "<b>odd & run.h5")
    table = mi.measure(run, n_sequences=20)
    table["icl_accuracy"] = [0.1] * 5 + [0.5] + [0.9] * 5
    return mi.write_report(run, table, folder / "r.html", others={"<img src=x onerror=alert(1)>": table})


@contextmanager
def opened(browser, path: Path, *, fragment: str = "", **context):
    """The page, ready; afterwards: it has asked for nothing, and the console is empty."""
    page = browser.new_context(**{"viewport": DESK, "offline": True, **context}).new_page()
    page.set_default_timeout(300_000)  # of a machine that does much else
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri() + fragment)
    page.wait_for_selector("html.ready", state="attached")
    yield page
    page.wait_for_timeout(50)
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    page.context.close()
