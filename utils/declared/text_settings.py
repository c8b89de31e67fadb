"""How texts were made into tokens: what a token cache's manifest and a checkpoint's config.json record of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.declared.text_profiles import DEFAULT_PROFILE, RECORDED_PROFILES
from utils.errors import UserError

TEXT_KEYS = ("text_profile", "query_prefix", "passage_prefix")
INITIAL_PROFILE = "initial_text_profile"  # of what training began with; null: nobody knows, or two towers differ


@dataclass(frozen=True)
class TextSettings:
    """A word of `utils.declared.text_profiles`, and what is put before each text of a side, as part of it."""

    text_profile: str = DEFAULT_PROFILE
    query_prefix: str = ""
    passage_prefix: str = ""

    def record(self) -> dict[str, str]:
        """As manifest.json and config.json have it, under `TEXT_KEYS`."""
        return asdict(self)

    def prefixes(self) -> str:
        """In words, "" where nothing is put before a text."""
        return "".join(f", {key} {value!r}" for key, value in self.record().items() if value and key != TEXT_KEYS[0])


DEFAULT_TEXTS = TextSettings()


def read_text_record(record: Mapping[str, object], path: Path) -> dict[str, str]:
    """Those of `TEXT_KEYS` that a manifest or a config has.

    Args:
        record: its content.
        path: where it was read, for the message.

    Raises:
        UserError: a value is no text, or the profile is none that this version knows.
    """
    found: dict[str, str] = {}
    for key in TEXT_KEYS:
        value = record.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(f"{path} says {key} {value!r}, expected a text; the file is damaged")
        found[key] = value
    profile = found.get("text_profile", DEFAULT_PROFILE)
    if profile not in RECORDED_PROFILES:
        known = ", ".join(RECORDED_PROFILES)
        raise UserError(
            f"{path} says text_profile {profile!r}, expected one of {known}; take the version that wrote it"
        )
    return found
