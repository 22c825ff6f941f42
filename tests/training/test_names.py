"""What `xtoken_align.training` offers: every name from one place, and nothing heavy before one is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import xtoken_align.training


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def test_every_name_can_be_imported() -> None:
    for name in xtoken_align.training.__all__:
        assert getattr(xtoken_align.training, name) is not None
    assert set(xtoken_align.training.__all__) <= set(dir(xtoken_align.training))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = xtoken_align.training.nothing


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, xtoken_align.training; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert run(code) == "set()"


def test_without_transformers_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from xtoken_align.errors import MissingExtraError\n"
        "try:\n    from xtoken_align.training import XTokenTrainer\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    assert "pip install 'xtoken-align[train]'" in run(code)
