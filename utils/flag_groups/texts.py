"""Flags of texts: how long they may be, the preprocessed directory, its splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from utils.declared.text_profiles import TEXT_PROFILES
from utils.declared.words import words_help
from utils.flag_values import Group, flag

DEFAULT_LENGTHS = {"max_seq_length": 128, "max_query_length": 64}  # ANCE's msmarco_data


def profiles_help() -> str:
    return f"{words_help(TEXT_PROFILES)}; default: the model's, else hf"


@dataclass(frozen=True, kw_only=True)
class DocumentFlags:
    GROUP: ClassVar[Group] = "data"

    max_doc_character: int = flag(
        10000, "characters kept of a document before tokenizing", at_least=1, decides="nothing"
    )


@dataclass(frozen=True, kw_only=True)
class LengthFlags(DocumentFlags):
    """How long a text may be; `utils.model_texts` finds what a model's files say."""

    GROUP: ClassVar[Group] = "data"

    max_seq_length: int | None = flag(
        None,
        "tokens kept of a passage; default: what the model's files say it was trained with, else 128",
        at_least=1,
    )
    max_query_length: int | None = flag(
        None,
        "tokens kept of a query; default: what the model's files say it was trained with, else 64",
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class TextSettingFlags:
    """How a text becomes tokens, as `utils.declared.text_settings.TextSettings` has it."""

    GROUP: ClassVar[Group] = "data"

    text_profile: str = flag("", profiles_help, choices=TEXT_PROFILES)
    query_prefix: str | None = flag(None, "put before each query; default: what the model's files say, else nothing")
    passage_prefix: str | None = flag(
        None, "put before each passage; default: what the model's files say, else nothing"
    )


@dataclass(frozen=True, kw_only=True)
class ChangeTextFlags:
    GROUP: ClassVar[Group] = "data"

    change_text_profile: bool = flag(
        False,
        "train on texts of another profile or prefix than the model has seen; both are recorded",
        decides="nothing",
    )


@dataclass(frozen=True, kw_only=True)
class PreprocessedFlags(LengthFlags):
    """``drivers.job.text_lengths`` finds the lengths that are not given."""

    GROUP: ClassVar[Group] = "data"

    data_dir: str = flag(help="preprocessed directory, written by data.msmarco_data", is_path=True)
    text_profile: str = flag(
        "",
        "how the model's texts became tokens, where its config.json does not say",
        choices=TEXT_PROFILES,
        decides="nothing",
    )
    cache_dir: str = flag("", "ignored: the token cache is memory-mapped from --data_dir", is_path=True)

    IGNORED: ClassVar[dict[str, str]] = {
        "cache_dir": "the token cache is memory-mapped from --data_dir",
        "max_doc_character": "data.msmarco_data has cut the documents already",
    }


@dataclass(frozen=True, kw_only=True)
class DevSplitFlags:
    GROUP: ClassVar[Group] = "evaluation"

    dev_split: str = flag(
        "", "split that is measured while training; default: dev, else the first other than train", decides="nothing"
    )
