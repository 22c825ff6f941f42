"""The documentation as a site: it builds without a warning, and every page opens in a browser without an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

pytest.importorskip("sphinx_click")
pytest.importorskip("furo")
pytest.importorskip("myst_parser")
pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, which `scripts/test.sh` has built already."""
    if built := os.environ.get("XTOKEN_ALIGN_TEST_SITE"):
        return Path(built)
    place = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(place / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(place / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return place / "html"


@pytest.fixture
def fresh(browser: Any) -> Iterator[Any]:
    """The browser; what it logged before is forgotten, and it is as it was afterwards."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    yield browser
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_page_of_the_documentation_is_on_the_site(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in site.glob("*.html")}


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 400)])
def test_every_page_opens_silently_and_fits(site: Path, fresh: Any, scheme: str, width: int) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    fresh.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    fresh.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for page in sorted(site.glob("*.html")):
        fresh.get(page.as_uri())
        assert fresh.get_log("browser") == [], page.name
        wide = fresh.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, f"{page.name} is {wide} pixels wide"
        broken = "return [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src)"
        assert fresh.execute_script(broken) == [], page.name
        shade = fresh.execute_script("return getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")
        assert (int(shade[0]) < 128) == (scheme == "dark"), page.name
    events = [json.loads(entry["message"])["message"] for entry in fresh.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    # `chrome:` is what the browser's own first page asks for.
    assert all(url.startswith((site.as_uri(), "data:", "about:", "chrome:")) for url in asked), (
        "a page asks for something elsewhere"
    )
