"""The base that adapters are of."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError
from utils.exchange.model_files import base_of, weights_sha256
from utils.hub import model_directory

BASE_REMEDY = "bring the base back to its place, or merge the adapters where it is with python -m model.convert"


def base_directory(directory: Path) -> Path | None:
    """The directory of the base that the adapters in ``directory`` are of; None where there are none.

    UserError where it is not there any more.
    """
    base = base_of(directory)
    if base is None:
        return None
    place = model_directory(base.name_or_path)
    if not place.is_dir():
        raise UserError(
            f"{directory} holds adapters of the weights of {base.name_or_path}, which is not there; {BASE_REMEDY}"
        )
    return place


def check_base(directory: Path) -> Path | None:
    """The same, held against its sha256. UserError where it is another."""
    place, base = base_directory(directory), base_of(directory)
    if place is None or base is None:
        return None
    what = f"{directory} holds adapters of the weights of {base.name_or_path}"
    found = weights_sha256(place)
    if found != base.weights_sha256:
        raise UserError(f"{what}, found sha256 {found[:12]}, expected {base.weights_sha256[:12]}; {BASE_REMEDY}")
    return place
