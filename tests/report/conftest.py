"""Mappings whose tokens try to break out of a page, and the page opened in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_vocabs import make_vocab

from xtoken_align import Mapping, build
from xtoken_align.report import write_html
from xtoken_align.vocab.kinds import Kind

NASTY = (
    "</script><script>window.broken=1</script>",
    "<!--<script>",
    "--><img src=x onerror=window.broken=1>",
    "\"'><b onmouseover='window.broken=1'>",
    "</title></style></textarea></svg>",
    "&lt;&amp;&#0;",
    "{{ 7 * 7 }}{% raw %}",
    "]]>",
    "$x^2$",
    "a\u202eb\u2066c",
    "x\u2028y\u2029z",
    "a\0b\x1b[31m\r\n\t\x7f\x85",
    "\\n\\x41",
    "\u0301\u0302e",
    "\ufe0f\u3164\u00a0",
    "  two  spaces ",
    "long" * 2000,
    "עברית مرحبا",
)


@pytest.fixture(scope="session")
def nasty() -> Mapping:
    """A mapping that splits every nasty token, has some as special tokens, and is called by such names."""
    bytewise = [bytes([value]) for value in range(256)]
    texts = [*NASTY, b"\xe4\xb8", *(str(number) for number in range(1000) if number % 7)]
    specials = [(f"<|{text[:60]}|>", Kind.SPECIAL) for text in NASTY]
    nothing = [(b"<unused0>", Kind.RESERVED), (b"", Kind.PADDING), (b"", Kind.HOLE)]
    student = make_vocab(
        [*texts, *specials, *nothing],
        name="student<b>\u202e\"'",
        source="<img src=x onerror=window.broken=1>",
        roles={"bos": [len(texts)]},
    )
    teacher = make_vocab(
        [*bytewise, (b"</script><!--", Kind.SPECIAL)], name="</title><i>teacher", roles={"bos": [len(bytewise)]}
    )
    return build(student=student, teacher=teacher)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages that have been written, by the versions of their mappings."""
    return tmp_path_factory.mktemp("pages")


Open = Callable[[Mapping], Any]


@pytest.fixture
def show(browser: Any, pages: Path) -> Iterator[Open]:
    """Opens a mapping's page afresh and returns the browser; what it logged before is forgotten."""

    wait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait

    def call(mapping: Mapping) -> Any:
        path = pages / f"{mapping.version}.html"
        if not path.exists():
            write_html(mapping, path)
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(path.as_uri())
        # A slow machine fills the table after the page is there.
        filled = "return document.querySelector('#count').textContent !== ''"
        wait(browser, 30).until(lambda page: page.execute_script(filled))
        return browser

    yield call
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
