"""Text profiles against a slow reading of what transformers 2.x did to a text, one character after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data.sources.base import Passage
from data.tokens.text_profile import TextPreparer, text_preparer
from data.tokens.tokenizer import Text, encoder_at, load_tokenizer
from data.wordpiece import save_tokenizer, train_tokenizer
from tests.tokenizers import WORDS, save_byte_level
from utils.declared.text_profiles import TEXT_PROFILES
from utils.declared.text_settings import TextSettings
from utils.errors import UserError

LONG = 10_000

# Blanks of every kind, and what looks like one: NBSP, zero-width, BOM, CR, separators of Unicode and of ASCII.
BLANKS = [*" \u00a0\u2003\u3000\u200b\u200d\ufeff\u0085\u2028\x0b\x0c\x1c\x1f\r\t\n"]
ROBERTA = ["<s>", "</s>", "<unk>", "<pad>", "<mask>"]
BERT = ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"]
LETTERS = [*"ab\u03b8Σ\u03c3ςÉéßİI\u0131ǅ.,<>/[]ſ中", "ΑΣ", "ΑΣ ", "Σ.", "Quick Fox", "e\u0301", "\U00010400"]
HALF = ["<S>", "<s", "s>", "</S>", "<sep>", "[sep]", "[SEP", "<MASK>", "cls]"]
TEXTS = st.lists(st.sampled_from([*LETTERS, *BLANKS, *ROBERTA, *BERT, *HALF]), max_size=14).map("".join)


# The reading


def special_at(text: str, place: int, special: list[str]) -> str:
    """The special token that is spelled out there, or ""."""
    return next((token for token in special if text.startswith(token, place)), "")


def lowered(text: str, special: list[str]) -> str:
    """Every character by itself, a special token's spelling as it stands."""
    out, place = "", 0
    while place < len(text):
        token = special_at(text, place, special)
        out += token or text[place].lower()
        place += len(token) or 1
    return out


def in_pieces(text: str, special: list[str]) -> list[str]:
    """Text, special token, text, …, text."""
    pieces, place = [""], 0
    while place < len(text):
        token = special_at(text, place, special)
        if token:
            pieces += [token, ""]
        else:
            pieces[-1] += text[place]
        place += len(token) or 1
    return pieces


def without_blanks(piece: str, at_both_ends: bool) -> str:
    while piece and piece[-1].isspace():
        piece = piece[:-1]
    while at_both_ends and piece and piece[0].isspace():
        piece = piece[1:]
    return piece


def ids_of(text: str, profile: str, special: list[str], bare: Tokenizer, ids: dict[str, int]) -> list[int]:
    """Without the marks at the ends. ``bare`` knows no special tokens, ``ids`` has theirs."""
    if profile == "star" and text and not text[0].isspace():
        text = " " + text
    if profile in ("ance", "star"):
        text = lowered(text, special)
    found: list[int] = []
    for number, piece in enumerate(in_pieces(text, special)):
        if number % 2:
            found.append(ids[piece])
        elif piece := without_blanks(piece, at_both_ends=profile != "star"):
            found += bare.encode(piece, add_special_tokens=False).ids
    return found


def without_special_tokens(directory: Path) -> Tokenizer:
    """The same words, and nothing that a text's special tokens could be found by."""
    whole = Tokenizer.from_file(str(directory / "tokenizer.json"))
    bare = Tokenizer(whole.model)
    bare.normalizer, bare.pre_tokenizer = whole.normalizer, whole.pre_tokenizer
    if type(bare.pre_tokenizer).__name__ == "ByteLevel":
        bare.pre_tokenizer.add_prefix_space = False
    return bare


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of RoBERTa's kind, one that adds a blank by itself, one that is told to split special tokens; and of BERT's."""
    directory = tmp_path_factory.mktemp("tokenizers")
    save_tokenizer(train_tokenizer(lambda: iter(WORDS), 200), directory / "bert")
    return {
        "plain": save_byte_level(directory / "plain"),
        "adds a blank": save_byte_level(directory / "blank", add_prefix_space=True),
        "splits": save_byte_level(directory / "splits", split_special_tokens=True),
        "bert": directory / "bert",
    }


def preparer_of(directory: Path, profile: str, characters: int = LONG, **prefixes: str) -> TextPreparer:
    return text_preparer(TextSettings(profile, **prefixes), load_tokenizer(directory), characters)


def encoded(preparer: TextPreparer, text: Text, max_length: int = LONG) -> list[int]:
    return encoder_at(preparer.backend, max_length)([text])[0]


SLOWLY = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def of_roberta(tokenizers: dict[str, Path]) -> dict[tuple[str, str], TextPreparer]:
    profiles = ("ance", "ance-warmup", "star")
    return {(kind, profile): preparer_of(tokenizers[kind], profile) for kind in tokenizers for profile in profiles
            if kind != "bert"}  # fmt: skip


@SLOWLY
@given(TEXTS, st.sampled_from(["plain", "adds a blank", "splits"]), st.sampled_from(["ance", "ance-warmup", "star"]))
@example("ΜΑΣ \u00a0</s>  ΟΔΟΣ\t<MASK> Σ", "plain", "ance")
@example(" <s>Σ", "adds a blank", "star")
@example("\u00a0a", "plain", "star")
def test_a_text_of_roberta(
    tokenizers: dict[str, Path], of_roberta: dict[tuple[str, str], TextPreparer], text: str, kind: str, profile: str
) -> None:
    preparer, bare = of_roberta[kind, profile], without_special_tokens(tokenizers[kind])
    ids = {token: bare.token_to_id(token) for token in ROBERTA}
    expected = [ids["<s>"], *ids_of(text.rstrip(), profile, ROBERTA, bare, ids), ids["</s>"]]
    assert encoded(preparer, preparer.query(text)) == expected
    assert encoded(preparer, preparer.passage(Passage("p", text))) == expected
    assert encoded(preparer, preparer.passage_text(text)) == expected


@SLOWLY
@given(st.lists(TEXTS, min_size=3, max_size=3), st.integers(0, 40), st.sampled_from(["ance", "ance-warmup", "star"]))
def test_a_document_of_roberta(tokenizers: dict[str, Path], fields: list[str], cut: int, profile: str) -> None:
    """Fields right-stripped, joined by the letters <sep>, cut, and a prefix put in front: then as any text."""
    preparer = preparer_of(tokenizers["plain"], profile, cut, passage_prefix="Σ passage: ")
    bare = without_special_tokens(tokenizers["plain"])
    ids = {token: bare.token_to_id(token) for token in ROBERTA}
    url, title, text = (without_blanks(field, at_both_ends=False) for field in fields)
    for passage, joined in (
        (Passage("p", fields[2], fields[1], fields[0]), url + "<sep>" + title + "<sep>" + text),
        (Passage("p", fields[2], fields[1]), title + "<sep>" + text),
    ):
        whole = "Σ passage: " + joined[:cut]
        expected = [ids["<s>"], *ids_of(whole, profile, ROBERTA, bare, ids), ids["</s>"]]
        assert encoded(preparer, preparer.passage(passage)) == expected


@SLOWLY
@given(TEXTS, TEXTS, st.sampled_from([LONG, 24]))
def test_a_passage_of_dpr(tokenizers: dict[str, Path], title: str, text: str, max_length: int) -> None:
    """[CLS] title [SEP] text [SEP]; the text is cut, unless the title is the longer."""
    preparer, bare = preparer_of(tokenizers["bert"], "dpr"), without_special_tokens(tokenizers["bert"])
    ids = {token: bare.token_to_id(token) for token in BERT}
    first, second = (ids_of(side.rstrip(), "dpr", BERT, bare, ids) for side in (title, text))
    while len(first) + len(second) + 3 > max_length and len(second) > len(first):
        second.pop()
    cls, sep = ids["[CLS]"], ids["[SEP]"]
    found = encoded(preparer, preparer.passage(Passage("p", text, title, "http://not.encoded")), max_length)
    if len(first) + len(second) + 3 <= max_length:
        assert found == [cls, *first, sep, *second, sep]
    assert len(found) <= max_length and found[0] == cls and found[-1] == sep
    alone = ids_of(text.rstrip(), "dpr", BERT, bare, ids)
    assert encoded(preparer, preparer.passage(Passage("p", text))) == [cls, *alone, sep], "a collection without titles"
    assert encoded(preparer, preparer.query(text)) == [cls, *alone, sep]


@SLOWLY
@given(st.lists(TEXTS, min_size=2, max_size=2), st.sampled_from(["plain", "adds a blank", "splits", "bert"]))
def test_hf_is_the_tokenizer_as_it_is(tokenizers: dict[str, Path], fields: list[str], kind: str) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizers[kind])
    preparer = preparer_of(tokenizers[kind], "hf", query_prefix="query: ")
    title, text = (without_blanks(field, at_both_ends=False) for field in fields)
    joined = f"{title} {text}" if title and text else title or text
    for passage, expected in ((Passage("p", fields[1]), text), (Passage("p", fields[1], fields[0]), joined)):
        assert encoded(preparer, preparer.passage(passage)) == tokenizer(expected)["input_ids"]
    assert encoded(preparer, preparer.query(fields[1])) == tokenizer("query: " + text)["input_ids"]


# The profiles tell one from another


def test_the_profiles_differ(tokenizers: dict[str, Path]) -> None:
    """On one text that has all that they do otherwise."""
    text, found = " The </s>  Quick ΟΔΟΣ", {}
    for profile in ("hf", "ance", "ance-warmup", "star"):
        preparer = preparer_of(tokenizers["plain"], profile)
        found[profile] = preparer.query(text)
    assert found == {
        "hf": " The </s>  Quick ΟΔΟΣ",
        "ance": "the</s>quick \u03bf\u03b4\u03bf\u03c3",
        "ance-warmup": "The</s>Quick ΟΔΟΣ",
        "star": " the</s>  quick \u03bf\u03b4\u03bf\u03c3",
    }
    assert preparer_of(tokenizers["plain"], "star").query("The") == " the"


@SLOWLY
@given(TEXTS)
@example("\u00a0[MASK] a\t[CLS] Σ [SEP]")
def test_a_text_of_tct_colbert(tokenizers: dict[str, Path], text: str) -> None:
    """As Pyserini's TctColBert encoders call the tokenizer."""
    tokenizer = load_tokenizer(tokenizers["bert"])

    def ids_by_tokenizer(spelled: str, longest: int) -> list[int]:
        ids: list[int] = tokenizer(spelled, max_length=longest, truncation=True, add_special_tokens=False)["input_ids"]
        return ids

    query, passage = (ids_by_tokenizer(f"[CLS] [{mark}] {text}", 9) for mark in "QD")
    masked = ids_by_tokenizer(f"[CLS] [Q] {text}" + "[MASK]" * 36, 36)
    preparer = preparer_of(tokenizers["bert"], "tct-colbert")
    assert encoded(preparer, preparer.query(text), 36) == masked and len(masked) == 36
    assert encoded(preparer, preparer.query(text), 9)[: len(query)] == query
    assert encoded(preparer, preparer.passage(Passage("p", text)), 9) == passage


def test_the_tokenizer_s_own_fingerprint_stays(tokenizers: dict[str, Path]) -> None:
    """A profile has a tokenizer of its own: the collection's is the model's."""
    from data.tokens.tokenizer import fingerprint_of

    for kind in ("adds a blank", "splits"):
        tokenizer = load_tokenizer(tokenizers[kind])
        before = fingerprint_of(tokenizer)
        text_preparer(TextSettings("ance"), tokenizer, LONG)
        assert fingerprint_of(tokenizer) == before


# What cannot be


@pytest.mark.parametrize("profile", [word for word, declared in TEXT_PROFILES.items() if declared.special_tokens])
def test_a_tokenizer_without_the_special_tokens_is_refused(tokenizers: dict[str, Path], profile: str) -> None:
    other = "plain" if profile in ("dpr", "tct-colbert") else "bert"
    message = rf"^--text_profile {profile} needs the special tokens .*, the tokenizer has .*another profile$"
    with pytest.raises(UserError, match=message):
        preparer_of(tokenizers[other], profile)


def test_a_tokenizer_that_makes_no_pairs_is_refused(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = load_tokenizer(tokenizers["bert"])
    single = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.backend_tokenizer.post_processor = single
    with pytest.raises(
        UserError, match=r"^--text_profile dpr needs \[CLS\] title \[SEP\] text \[SEP\], the tokenizer "
    ):
        text_preparer(TextSettings("dpr"), tokenizer, LONG)
