"""Damage of every kind to a mapping file: bytes, lengths, zip headers, members, metadata."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile

import numpy as np


def flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return rng.choice((content[:start], content[end:], content[:start] + content[end:]))


def grow(content: bytes, rng: random.Random) -> bytes:
    at, start = rng.randrange(len(content) + 1), rng.randrange(len(content))
    inserted = rng.choice((rng.randbytes(rng.randrange(1, 64)), content[start : start + 200], b"\0" * 1000))
    return content[:at] + inserted + content[at:]


def alter_zip_field(content: bytes, rng: random.Random) -> bytes:
    """Writes an awkward number into a field of a local header, a directory entry or the end record."""
    signature, fields = rng.choice(
        (
            (b"PK\x03\x04", (4, 6, 8, 10, 14, 18, 22, 26, 28)),
            (b"PK\x01\x02", (4, 6, 8, 10, 12, 16, 20, 24, 28, 30, 32, 34, 36, 38, 42)),
            (b"PK\x05\x06", (4, 6, 8, 10, 12, 16, 20)),
        )
    )
    starts = [match.start() for match in re.finditer(re.escape(signature), content)]
    value = rng.choice((0, 1, 8, 99, 128, 0x7FFF, 0xFFFF, 1 << 24, 0x7FFFFFFF, 0xFFFFFFFF, rng.getrandbits(32)))
    form, bits = rng.choice((("<H", 0xFFFF), ("<L", 0xFFFFFFFF)))
    changed = bytearray(content)
    at = min(rng.choice(starts) + rng.choice(fields), len(content) - 4)
    struct.pack_into(form, changed, at, value & bits)
    return bytes(changed)


def alter_members(content: bytes, rng: random.Random) -> bytes:
    """Makes a sound zip file of changed members: swapped, renamed, dropped, or themselves mutated."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    rng.shuffle(members)
    (first, one), (second, two) = members[:2]
    changes: list[list[tuple[str, bytes]]] = [
        [(first, two), (second, one)],
        [(f"x{first}", one), (second, two)],
        [(second, two)],
        [(first, one), (second, two), ("more.npy", two)],
        [(first, rng.choice((flip, cut, grow))(one, rng)), (second, two)],
        [(first, one.replace(b"(", b"(1", 1)), (second, two)],
    ]
    # Metadata that says something else of names and dates is another sound file, not a damaged one.
    keep = [("metadata.npy", one if first == "metadata.npy" else two)] if "metadata.npy" in (first, second) else []
    changed = [pair for pair in rng.choice(changes) if not keep or pair[0] != "metadata.npy"] + keep + members[2:]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, member in changed:
            archive.writestr(name, member)
    return buffer.getvalue()


def alter_metadata(content: bytes, rng: random.Random) -> bytes:
    """Changes one value of the metadata that the hash covers, in a sound zip file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(members["metadata.npy"][128:])
    parent = rng.choice((metadata, metadata["student"]["sizes"], metadata["teacher"]["roles"], metadata["options"]))
    key = rng.choice(sorted(set(parent) - {"package_version", "provenance"}))
    parent[key] = rng.choice((None, True, -1, 1 << 70, 0.5, "", [], {}, [[]], [1 << 40], {"": []}, "0" * 64))
    buffer = io.BytesIO()
    np.save(buffer, np.frombuffer(json.dumps(metadata).encode(), dtype=np.uint8))
    members["metadata.npy"] = buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


MUTATORS = (flip, flip, cut, grow, alter_zip_field, alter_zip_field, alter_members, alter_metadata)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Applies a mutation, sometimes two, the second of the kinds that need no sound zip file to start from."""
    content = rng.choice(MUTATORS)(content, rng)
    if rng.random() < 0.2 and content:
        content = rng.choice((flip, cut, grow))(content, rng)
    return content
