"""From the plain values of a YAML file to frozen dataclasses: every key known, every value of its type."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import OptionError

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "options by name"}
_CLOSE_ENOUGH = 0.6
"""rapidfuzz's ratio, 0 to 1: `learning-rate` to `learning_rate` scores 0.92, `batch` to `batch_size` 0.67."""


def from_values(cls: type[T], values: Any, where: str = "") -> T:
    """A dataclass from the values under its fields' names.

    Args:
        cls: a dataclass whose fields are of plain types, literals, optional ones, tuples of them, or dataclasses.
        values: what a YAML file has in this place.
        where: the place, for messages: `training.` for the keys under `training`.

    Raises:
        OptionError: a key is unknown or missing, or a value is of another type; says where.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Size:
    ...     width: int
    ...     unit: str = "mm"
    >>> from_values(Size, {"width": 3})
    Size(width=3, unit='mm')
    >>> from_values(Size, {"widht": 3})
    Traceback (most recent call last):
    ...
    xtoken_align.errors.OptionError: no setting is called 'widht': did you mean 'width'? The settings are width, unit
    """
    if not isinstance(values, Mapping):
        raise OptionError(f"expected settings by name {_at(where)}, got {_shown(values)}")
    assert is_dataclass(cls)
    known: dict[str, Field[Any]] = {field.name: field for field in fields(cls)}
    refuse_unknown(values, list(known), where)
    hints = get_type_hints(cls)
    made = {}
    for name, field in known.items():
        if name in values:
            made[name] = _value(hints[name], values[name], f"{where}{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise OptionError(f"the setting {where}{name} is missing: it is {_described(hints[name])}")
    return cls(**made)


def refuse_unknown(keys: Iterable[Any], known: Sequence[str], where: str = "") -> None:
    """Refuses the first key that is not known, with the nearest one that is.

    Raises:
        OptionError: a key is not known.
    """
    for key in keys:
        if key not in known:
            raise OptionError(_unknown(str(key), known, where))


def _unknown(key: str, known: Sequence[str], where: str) -> str:
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    close = process.extractOne(key, known, scorer=Indel.normalized_similarity, score_cutoff=_CLOSE_ENOUGH)
    meant = f": did you mean {where + close[0]!r}?" if close else "."
    return f"no setting is called {where + key!r}{meant} The settings are {', '.join(known)}"


def _value(hint: Any, value: Any, where: str) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    for option in options:
        if _plainly(option, value):
            return float(value) if option is float else value
    for option in options:
        if is_dataclass(option) and (len(options) == 1 or isinstance(value, Mapping)):
            assert isinstance(option, type)
            return from_values(option, value, f"{where}.")
        if get_origin(option) is tuple and isinstance(value, (list, tuple)):
            inner = get_args(option)[0]
            return tuple(_value(inner, each, f"{where}[{number}]") for number, each in enumerate(value))
    raise OptionError(f"{where} must be {_described(hint)}, but it is {_shown(value)}")


def _plainly(hint: Any, value: Any) -> bool:
    """Whether a value is of a plain type; YAML's true is no number, and 1 is a number."""
    if get_origin(hint) is Literal:
        return value in get_args(hint) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return hint in (str, bool) and isinstance(value, hint)


def _described(hint: Any) -> str:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    said = []
    for option in options:
        if option is type(None):
            said.append("null")
        elif get_origin(option) is Literal:
            said += [str(word) for word in get_args(option)]
        elif get_origin(option) is tuple:
            said.append(f"a list, each {_described(get_args(option)[0])}")
        elif is_dataclass(option):
            said.append(f"settings by name ({', '.join(field.name for field in fields(option))})")
        else:
            said.append(_WORDS[get_origin(option) or option])
    return " or ".join(said)


def _at(where: str) -> str:
    return f"under {where.rstrip('.')}" if where else "in the file"


def _shown(value: Any) -> str:
    text = repr(value)
    # 1e-4 is a text in YAML 1.1, which wants a point and a sign: 1.0e-4.
    hint = " (YAML reads 1e-4 as a text: write 1.0e-4)" if isinstance(value, str) and _is_number(value) else ""
    return (text if len(text) <= 60 else f"{text[:57]}...") + hint


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
