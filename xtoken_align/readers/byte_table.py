"""GPT-2's table between bytes and printable characters, computed from its definition.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (byte-level BPE). Printable Latin-1
characters stand for themselves; the other bytes take the code points from 256 on, in ascending order.
"""

from __future__ import annotations

from functools import cache


def _printable(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD)


@cache
def byte_to_character() -> tuple[str, ...]:
    """The character of each byte, by byte value."""
    shifted = iter(range(256, 512))
    return tuple(chr(byte) if _printable(byte) else chr(next(shifted)) for byte in range(256))


@cache
def _to_latin1() -> dict[int, int]:
    # A Latin-1 character outside the alphabet must not pass for a byte: it goes where encoding to Latin-1 fails.
    table = dict.fromkeys(range(256), 65535)
    table.update({ord(character): byte for byte, character in enumerate(byte_to_character())})
    return table


@cache
def _from_latin1() -> dict[int, str]:
    return dict(enumerate(byte_to_character()))


def bytes_of(token: str) -> bytes | None:
    r"""The bytes that a token string stands for, None where a character is not in the alphabet.

    >>> bytes_of("Ġthe"), bytes_of("Ã©"), bytes_of("中")
    (b' the', b'\xc3\xa9', None)
    """
    try:
        return token.translate(_to_latin1()).encode("latin-1")
    except UnicodeEncodeError:
        return None


def characters_of(data: bytes) -> str:
    """The token string that stands for `data`; the inverse of `bytes_of`.

    >>> characters_of(b" the")
    'Ġthe'
    """
    return data.decode("latin-1").translate(_from_latin1())
