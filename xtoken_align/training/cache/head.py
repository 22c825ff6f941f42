"""The output head of a cache of hidden states: one file beside the shards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ...errors import ArtifactError, MissingExtraError, StoreError
from ...files import write_atomically
from ...losses.heads import Head
from .format import CacheSettings

HEAD = "head.safetensors"

_METADATA = "xtoken_align.head"
"""The entry of the file's metadata with the scale and the softcap. One alone, since their order is not fixed."""


def head_hash(head: Head) -> str:
    """SHA-256 over all that makes logits of hidden states, as 64 hexadecimal digits.

    >>> head_hash(Head(torch.zeros(3, 2), None, 1.0, None))[:8]
    'ea101def'
    """
    facts = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in _tensors(head).items()}
    digest = hashlib.sha256(json.dumps([facts, head.scale, head.softcap]).encode())
    for tensor in _tensors(head).values():
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def keep_head(folder: Path, head: Head, settings: CacheSettings) -> None:
    """Writes the head into a cache's folder, unless it is there and sound.

    Args:
        folder: the cache's folder, which has its manifest.
        head: the head.
        settings: of the cache, with the head's hash.

    Raises:
        StoreError: the file cannot be written or read.
    """
    try:
        if (folder / HEAD).exists():
            read_head(folder, settings)
            return
    except ArtifactError:
        pass
    facts = json.dumps({"scale": head.scale, "softcap": head.softcap})
    write_atomically(folder / HEAD, _safetensors().torch.save(_tensors(head), {_METADATA: facts}))


def read_head(folder: Path, settings: CacheSettings) -> Head:
    """The head of a cache of hidden states, on the processor.

    Raises:
        StoreError: it is not there, or cannot be read.
        ArtifactError: it is not what was written.
    """
    path = folder / HEAD
    try:
        # Not mapped into memory: a file that somebody cuts short would end the process.
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing: run the teacher again over the same rows, it will be added") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): make it readable") from error
    try:
        tensors, facts = _parsed(content)
        head = Head(tensors["weight"], tensors.get("bias"), float(facts["scale"]), facts["softcap"])
        sound = tuple(head.weight.shape) == (settings.logits, settings.hidden_size)
        sound = sound and head_hash(head) == settings.head
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if not sound:
        raise _damaged(path, "it is not what was written")
    return head


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged ({reason}): run the teacher again over the same rows, it will be replaced")


def _tensors(head: Head) -> dict[str, torch.Tensor]:
    given = {"weight": head.weight, "bias": head.bias}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in given.items() if tensor is not None}


def _parsed(content: bytes) -> tuple[dict[str, torch.Tensor], Any]:
    """Tensors and facts of a file; a ValueError where it is none."""
    safetensors = _safetensors()
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(error) from error
    # Eight bytes say how long the header is, which is JSON.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, json.loads(header["__metadata__"][_METADATA])


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError("A cache of hidden states", "train") from error
    return safetensors
