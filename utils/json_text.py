"""JSON that any reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def json_text(
    value: object, indent: int | None = None, default: Callable[[Any], Any] | None = None, sort_keys: bool = False
) -> str:
    """JSON in which a number that is not finite is null: JSON has no NaN and no Infinity.

    Args:
        value: what is written.
        indent: blanks for each level; None for a single line.
        default: makes something that JSON has of what it has not.
        sort_keys: in the order of the keys, else in that of their insertion.
    """
    return json.dumps(finite(value), indent=indent, default=default, sort_keys=sort_keys, allow_nan=False)


def finite(value: object) -> Any:
    """``value`` with null in the place of each number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
