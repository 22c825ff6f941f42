"""What of a loss's options and of teachers' weights can be checked without a mapping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import OptionError
from ..losses import LossOptions
from .config_values import refuse_unknown


def check_loss_options(options: Mapping[str, Any], where: str) -> None:
    """Refuses what is wrong with a loss's options by themselves.

    Args:
        options: of `XTokenLoss`.
        where: the place that they are given in, for messages: `loss`.

    Raises:
        OptionError: an option is unknown, of another type, or makes no sense.
    """
    refuse_unknown(options, list(LossOptions.__dataclass_fields__), f"{where}.")
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise OptionError(f"{where}.{name} must be a finite number, but it is {value}")
    try:
        LossOptions(**{"kind": "auto", **options})
    except TypeError as error:
        raise OptionError(f"an option of {where} is of another type than it should be: {error}") from error
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from error


def weights_of(given: Sequence[float | None]) -> list[float]:
    """The teachers' weights: those that are given, or equal ones.

    Raises:
        OptionError: some have one and some have none, or one is no number from 0 on.

    >>> weights_of([None, None])
    [0.5, 0.5]
    """
    known = [weight for weight in given if weight is not None]
    if known and len(known) != len(given):
        raise OptionError(
            f"teachers[{given.index(None)}].weight is missing: either all teachers have a weight or none has, but "
            f"{len(known)} of {len(given)} have one"
        )
    for number, weight in enumerate(known):
        if not 0 <= weight < math.inf:
            raise OptionError(f"teachers[{number}].weight must be a number from 0 on, but it is {weight}")
    return [float(weight) for weight in known] or [1 / len(given)] * len(given)
