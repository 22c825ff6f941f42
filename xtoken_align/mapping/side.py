"""One side of a mapping: what a mapping keeps of a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..vocab.byte_strings import ByteStrings
from ..vocab.vocab import Sizes, Vocab


@dataclass(frozen=True, eq=False, kw_only=True)
class Side:
    """The student or the teacher of a mapping.

    Attributes:
        name: short name.
        source: what was read to build it.
        revision: commit hash of a Hub repository, else None.
        sizes: the four sizes.
        roles: role -> ids.
        fingerprint: of the text vocabulary.
        kinds: uint8 (logits,), values of `Kind`.
        surfaces: bytes per id.
    """

    name: str
    source: str
    revision: str | None
    sizes: Sizes
    roles: Mapping[str, tuple[int, ...]]
    fingerprint: str
    kinds: NDArray[np.uint8]
    surfaces: ByteStrings

    @classmethod
    def of(cls, vocab: Vocab) -> Side:
        """What a mapping keeps of `vocab`."""
        return cls(
            name=vocab.name,
            source=vocab.source,
            revision=vocab.revision,
            sizes=vocab.sizes,
            roles=vocab.roles,
            fingerprint=vocab.fingerprint,
            kinds=vocab.kinds,
            surfaces=vocab.surfaces,
        )

    def metadata(self) -> dict[str, Any]:
        """The part that goes into a file's metadata."""
        sizes = self.sizes
        return {
            "name": self.name,
            "source": self.source,
            "revision": self.revision,
            "sizes": {"base": sizes.base, "with_added": sizes.with_added, "ids": sizes.ids, "logits": sizes.logits},
            "roles": {role: list(ids) for role, ids in self.roles.items()},
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_file(cls, metadata: Mapping[str, Any], kinds: NDArray[np.uint8], surfaces: ByteStrings) -> Side:
        """The inverse of `metadata`, over validated fields."""
        return cls(
            name=metadata["name"],
            source=metadata["source"],
            revision=metadata["revision"],
            sizes=Sizes(**metadata["sizes"]),
            roles={role: tuple(ids) for role, ids in metadata["roles"].items()},
            fingerprint=metadata["fingerprint"],
            kinds=kinds,
            surfaces=surfaces,
        )

    def summary(self) -> dict[str, Any]:
        """The JSON of the commands."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "size": self.sizes.with_added,
            "logits": self.sizes.logits,
        }
