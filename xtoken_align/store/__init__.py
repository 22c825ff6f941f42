"""Where mappings are kept and how training code gets them."""

from .entries import Entry, collect, entries
from .get_or_build import get_or_build
from .load import load
from .store import Store, store_root

__all__ = ["Entry", "Store", "collect", "entries", "get_or_build", "load", "store_root"]
