"""The words of --text_profile, each declared once: what of a text the tokenizer is given.

Weights belong to one of them: a model that has seen lower-cased texts only scores low on others. data/tokens/
text_profile.py applies them; the token cache and every checkpoint record theirs (utils/declared/text_settings.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.declared.papers import ANCE, DPR, STAR, TCT_COLBERT


@dataclass(frozen=True)
class TextProfile:
    """A word of --text_profile. Blanks at the end of a field are dropped by all.

    Those with ``special_tokens`` do what transformers 2.x did, which later versions do not: a special token that is
    spelled out in a text becomes that token, and the pieces of text around it are stripped as the whole text is.

    Args:
        description: for --help.
        source: whose weights are of it.
        separator: what url, title and text are joined by; None: title and text are two segments for the tokenizer, and
            the url is omitted.
        omits_blank_fields: a field that is blank is not joined either; else one that the collection lacks is not.
        lower_cases: character by character, so that a final sigma becomes σ; spellings of special tokens stay.
        strips_both: blanks before a piece of text are dropped, too, not only those after it.
        adds_prefix_blank: a blank is put before a text, unless it begins with white space.
        special_tokens: that the tokenizer must have; none: it is taken as it is.
        passage_start, query_start: spelled out in front of a text and its prefix.
        query_filler: a special token that fills queries up to ``query_tokens``.
        query_tokens: of every query; 0: as many as it has.
        adds_special_tokens: the tokenizer puts its own around a text. Without them a text has no end token.
    """

    description: str
    source: str
    separator: str | None = " "
    omits_blank_fields: bool = False
    lower_cases: bool = False
    strips_both: bool = False
    adds_prefix_blank: bool = False
    special_tokens: tuple[str, ...] = ()
    passage_start: str = ""
    query_start: str = ""
    query_filler: str = ""
    query_tokens: int = 0
    adds_special_tokens: bool = True


ROBERTA_TOKENS = ("<s>", "</s>")
BERT_TOKENS = ("[CLS]", "[SEP]")
SEP = "<sep>"  # spelled out between the fields of a document: no special token of RoBERTa's

DEFAULT_PROFILE = "hf"
TEXT_PROFILES = {
    DEFAULT_PROFILE: TextProfile(
        "the tokenizer as it is, fields joined by a blank",
        "sentence-transformers' and BEIR's",
        omits_blank_fields=True,
    ),
    "ance": TextProfile(
        "lower-cased and stripped, fields joined by <sep>",
        f"{ANCE}; Pyserini's and sentence-transformers' copies",
        separator=SEP,
        lower_cases=True,
        strips_both=True,
        special_tokens=ROBERTA_TOKENS,
    ),
    "ance-warmup": TextProfile(
        "the same, not lower-cased",
        "ANCE's published warmup",
        separator=SEP,
        strips_both=True,
        special_tokens=ROBERTA_TOKENS,
    ),
    "star": TextProfile(
        "lower-cased, a blank put in front, fields joined by <sep>",
        STAR,
        separator=SEP,
        lower_cases=True,
        adds_prefix_blank=True,
        special_tokens=ROBERTA_TOKENS,
    ),
    "dpr": TextProfile(
        "title and text as two segments, stripped",
        f"{DPR}; ANCE's OpenQA",
        separator=None,
        strips_both=True,
        special_tokens=BERT_TOKENS,
    ),
    "tct-colbert": TextProfile(
        "passages begin with [CLS] [D], queries with [CLS] [Q] and are filled up with [MASK] to 36 tokens; no [SEP]",
        TCT_COLBERT,
        omits_blank_fields=True,
        strips_both=True,
        special_tokens=("[CLS]", "[MASK]", "[PAD]"),
        passage_start="[CLS] [D] ",
        query_start="[CLS] [Q] ",
        query_filler="[MASK]",
        query_tokens=36,
        adds_special_tokens=False,
    ),
}

# What versions before profiles did: the recorded word of their document collections. Nobody can ask for it.
EARLIER = "earlier"
EARLIER_PROFILE = TextProfile("the tokenizer as it is, fields joined by <sep>", "earlier versions", separator=SEP)
RECORDED_PROFILES = {**TEXT_PROFILES, EARLIER: EARLIER_PROFILE}
