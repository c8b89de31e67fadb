"""Text profiles at work: from a passage or a query to what the tokenizer is given, as a profile has it.

What transformers 2.x did to a text (lower-casing, stripping, a blank in front) later tokenizers do not; here it is done
to the text itself, before a tokenizer sees it. utils/declared/text_profiles.py says what each profile does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.sources.base import Passage
from data.tokens.tokenizer import Text, check_tokenizer_cuts, clean_text, join_fields
from utils.declared.text_profiles import RECORDED_PROFILES, TextProfile
from utils.declared.text_settings import TextSettings
from utils.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SMALL_SIGMA = "\u03c3"
BYTE_LEVEL = "ByteLevel"  # the pre-tokenizer of RoBERTa, which may put a blank in front


@dataclass(frozen=True)
class TextPreparer:
    """What the tokenizer sees of a passage, of one that is nothing but a text, and of a query.

    ``backend`` is the library's tokenizer that sees it.
    """

    passage: Callable[[Passage], Text]
    passage_text: Callable[[str], str]
    query: Callable[[str], str]
    backend: Tokenizer


def text_preparer(settings: TextSettings, tokenizer: PreTrainedTokenizerBase, max_doc_character: int) -> TextPreparer:
    """UserError where the tokenizer lacks what the profile needs. A passage is cut at so many characters."""
    profile = RECORDED_PROFILES[settings.text_profile]
    backend = backend_of(settings.text_profile, tokenizer)
    clean = piece_cleaner(profile, tokenizer.all_special_tokens) if profile.special_tokens else str

    start, filler = profile.passage_start + settings.passage_prefix, profile.query_filler * profile.query_tokens

    def passage_text(text: str) -> str:
        return clean(start + clean_text(text)[:max_doc_character])

    def joined(passage: Passage) -> str:
        fields = (passage.url, passage.title, passage.text)
        text = join_fields(fields, profile.separator or "", profile.omits_blank_fields)
        return clean(start + text[:max_doc_character])

    def segments(passage: Passage) -> Text:
        if passage.title is None:
            return passage_text(passage.text)
        return clean(start + passage.title), clean(clean_text(passage.text)[:max_doc_character])

    def query_text(text: str) -> str:
        return clean(profile.query_start + settings.query_prefix + clean_text(text) + filler)

    return TextPreparer(segments if profile.separator is None else joined, passage_text, query_text, backend)


def piece_cleaner(profile: TextProfile, special_tokens: Sequence[str]) -> Callable[[str], str]:
    """Text to the text of which the tokenizer makes what one of transformers 2.x made.

    In the order of transformers: a blank in front, lower case, then special tokens are found, of which lower-casing may
    have made some, and the pieces of text between them are stripped.
    """
    by_length = sorted(special_tokens, key=len, reverse=True)
    found = re.compile(f"({'|'.join(map(re.escape, by_length))})")
    first_characters = {token[0] for token in special_tokens}
    keeps_spellings = any(token != token.lower() for token in special_tokens)
    strip = str.strip if profile.strips_both else str.rstrip

    def clean(text: str) -> str:
        if profile.adds_prefix_blank and text and not text[0].isspace():
            text = f" {text}"
        if profile.lower_cases:
            text = lower_pieces(text, found) if keeps_spellings else lower_characters(text)
        if not any(character in text for character in first_characters):  # most texts, found out at once
            return strip(text)
        parts = found.split(text)
        parts[::2] = map(strip, parts[::2])
        return "".join(parts)

    return clean


def lower_characters(text: str) -> str:
    """Each character for itself: str.lower alone makes another letter of a sigma at the end of a word."""
    return text.replace("Σ", SMALL_SIGMA).lower()


def lower_pieces(text: str, special_tokens: re.Pattern[str]) -> str:
    """The same but for special tokens."""
    parts = special_tokens.split(text)
    parts[::2] = map(lower_characters, parts[::2])
    return "".join(parts)


# The tokenizer


def backend_of(word: str, tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The library's tokenizer; of a profile of transformers 2.x one that finds special tokens and adds no blank itself.

    UserError where the tokenizer lacks special tokens of the profile ``word``, or makes no pair of two segments.
    """
    profile, backend = RECORDED_PROFILES[word], tokenizer.backend_tokenizer
    if not profile.special_tokens:
        return backend
    check_special_tokens(word, tokenizer)
    if profile.separator is None:
        check_segments(word, tokenizer)
    state = json.loads(backend.to_str())
    adding = [part for part in byte_levels(state["pre_tokenizer"]) if part.get("add_prefix_space")]
    is_as_wanted = profile.adds_special_tokens and not (adding or backend.encode_special_tokens)
    if not is_as_wanted:  # the tokenizer's fingerprint shows all three: it stays as it is
        from tokenizers import Tokenizer

        for part in adding:
            part["add_prefix_space"] = False
        if not profile.adds_special_tokens:
            state["post_processor"] = None
        backend = Tokenizer.from_str(json.dumps(state))
        backend.encode_special_tokens = False
    return backend


def byte_levels(pre_tokenizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Those among a pre-tokenizer and its parts."""
    for part in (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer]):
        if part and part["type"] == BYTE_LEVEL:
            yield part


def check_lengths(
    settings: TextSettings, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, max_query_length: int
) -> None:
    """Whether texts may be cut at these lengths, in tokens.

    Args:
        settings: how texts become tokens.
        tokenizer: which makes them.
        max_seq_length, max_query_length: of a passage and of a query, the special tokens included.

    Raises:
        UserError: they leave no room for text, or are not those of the profile.
    """
    profile = RECORDED_PROFILES[settings.text_profile]
    if profile.adds_special_tokens:
        check_tokenizer_cuts(tokenizer, max_seq_length, max_query_length)
        return
    if max_query_length != profile.query_tokens:
        raise UserError(
            f"--max_query_length is {max_query_length}, --text_profile {settings.text_profile} makes queries of "
            f"{profile.query_tokens} tokens: give that"
        )
    backend = backend_of(settings.text_profile, tokenizer)
    backend.no_truncation()
    start, spelled = profile.passage_start.strip(), len(backend.encode(profile.passage_start).ids)
    if max_seq_length <= spelled:
        raise UserError(
            f"passages cut at {max_seq_length} tokens hold nothing but the {spelled} of {start}; raise --max_seq_length"
        )


def check_not_shortened(settings: TextSettings, asked: Mapping[str, int], made: Mapping[str, int]) -> None:
    """UserError where texts without an end token would be cut again: the token cache relies on one.

    Args:
        settings: how the texts became tokens.
        asked: by name of the flag, in tokens.
        made: the same of the preprocessed directory.
    """
    if RECORDED_PROFILES[settings.text_profile].adds_special_tokens:
        return
    for name, length in asked.items():
        if length < made[name]:
            raise UserError(
                f"--{name} is {length}, texts of --text_profile {settings.text_profile} cannot be cut again: give "
                f"{made[name]}, as --data_dir has it, or preprocess again"
            )


def check_special_tokens(word: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError where the tokenizer lacks one that the profile ``word`` needs."""
    needed = RECORDED_PROFILES[word].special_tokens
    missing = [token for token in needed if token not in tokenizer.all_special_tokens]
    if missing:
        has = " ".join(tokenizer.all_special_tokens) or "none"
        raise UserError(
            f"--text_profile {word} needs the special tokens {' '.join(needed)}, the tokenizer has {has}: "
            "give the model's own tokenizer, or another profile"
        )


def check_segments(word: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError unless two segments become [CLS] title [SEP] text [SEP]."""
    cls, sep = RECORDED_PROFILES[word].special_tokens
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    encoded = backend.encode("a", "b")
    added = [token for token, is_added in zip(encoded.tokens, encoded.special_tokens_mask, strict=True) if is_added]
    if added != [cls, sep, sep] or encoded.tokens[0] != cls or encoded.tokens[-1] != sep:
        raise UserError(
            f"--text_profile {word} needs {cls} title {sep} text {sep}, the tokenizer makes {' '.join(encoded.tokens)} "
            "of two segments: fix the post-processor of its tokenizer.json"
        )
