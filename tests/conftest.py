"""Real vocabularies, each read once per process, and a browser; tests are skipped where what they need is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from xtoken_align import Mapping, Vocab, build, read_vocab
from xtoken_align.errors import SourceError
from xtoken_align.sources.locate import package_file
from xtoken_align.sources.presets import presets

# Triton decides when it is first imported whether kernels are interpreted, which is all they can be without a GPU.
if not any(Path("/dev", name).exists() for name in ("nvidiactl", "kfd", "dxg")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A deadline per example measures the machine: the first example of a test pays for what is loaded on first use.
# Fifty examples of a property: what is drawn is small, and its odd cases are among the first.
settings.register_profile("project", deadline=None, max_examples=50)
settings.load_profile("project")

J2 = "pkg:ai21_tokenizer/resources/j2-tokenizer/j2-tokenizer.model"


@cache
def _read(source: str) -> Vocab | str:
    location = presets()[source].locations[0] if source in presets() else source
    try:
        # Asked first, since an alias whose package is missing would be looked for on the Hub.
        package_file(location)
    except SourceError as error:
        return str(error)
    return read_vocab(source)


@pytest.fixture(scope="session")
def real() -> Callable[[str], Vocab]:
    """Reads a real vocabulary by alias."""

    def read(source: str) -> Vocab:
        found = _read(J2 if source == "j2" else source)
        if isinstance(found, str):
            pytest.skip(found)
        return found

    return read


@pytest.fixture(scope="session")
def llama_qwen(real: Callable[[str], Vocab]) -> Mapping:
    """The mapping of student Llama-3 and teacher Qwen3."""
    return build(student=real("llama-3"), teacher=real("qwen3"))


@pytest.fixture(autouse=True, scope="session")
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the user's own store, dates a build by the machine or starts another package than it imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTOKEN_ALIGN_STORE", str(tmp_path_factory.mktemp("store")))
        patch.delenv("SOURCE_DATE_EPOCH", raising=False)
        # `python -c` looks in the working directory first. In a checkout that is a package without its command line.
        patch.setenv("PYTHONSAFEPATH", "1")
        yield


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    programs = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    program, driver = next(filter(None, programs), None), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("chromium (or Chrome) and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "force-prefers-reduced-motion",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_window_size(1200, 900)
    yield opened
    opened.quit()
