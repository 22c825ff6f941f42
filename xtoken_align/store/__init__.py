"""Where mappings are kept and how training code gets them."""

from .load import load
from .store import Store, store_root

__all__ = ["Store", "load", "store_root"]
