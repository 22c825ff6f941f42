"""Where tokenizers come from: paths, aliases, packages and the Hub."""

from __future__ import annotations

from .locate import Located, locate
from .patterns import SplitPreset, pattern_for_pre
from .presets import AddedToken, Preset, preset_for_hash, presets

__all__ = ["AddedToken", "Located", "Preset", "SplitPreset", "locate", "pattern_for_pre", "preset_for_hash", "presets"]
