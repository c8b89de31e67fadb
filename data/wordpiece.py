"""A lower-casing WordPiece tokenizer, trained on the passages and train queries of a raw collection.

    python -m data.wordpiece --data_dir RAW --data_type 1 --out_dir DIR --vocab_size 8192

BERT's recipe (Devlin et al. 2019): clean, lower-case, strip accents, split at blanks and punctuation, WordPiece;
a text becomes ``[CLS] … [SEP]`` and ``[PAD]`` is 0. ``transformers.AutoTokenizer.from_pretrained(DIR)`` loads it
as a fast tokenizer, also next to the config.json of a model type that transformers does not know.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from data.sources.atomic_dir import check_can_write, publish, staged_directory
from data.sources.base import Source
from data.sources.flags import SourceFlags
from data.sources.registry import open_source
from data.tokens.tokenizer import encoded_queries, encoded_texts
from utils.errors import UserError, run_program
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import TOKENIZER_FILE
from utils.flag_values import Group, flag
from utils.flags import answer_dry_run, parse_flags
from utils.run_log import say

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}  # ids 0 to 4
CONTINUATION = "##"
MAX_ALPHABET = 200  # characters that are tokens of their own; rarer ones become [UNK]
SMALLEST_VOCABULARY = 100  # there must be some of an alphabet
CONFIG_FILE = "tokenizer_config.json"


@dataclass(frozen=True, kw_only=True)
class WordPieceFlags(SourceFlags):
    """Train a lower-casing WordPiece tokenizer on the passages and train queries of a raw collection."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = "python -m data.wordpiece --data_dir raw --out_dir tokenizer --vocab_size 8192"

    out_dir: str = flag(help="directory for tokenizer.json and tokenizer_config.json", is_path=True)
    vocab_size: int = flag(8192, "most tokens the vocabulary may have", at_least=SMALLEST_VOCABULARY)
    max_doc_character: int = flag(10000, "characters read of a passage", at_least=1)


def files_read(source: Source) -> list[Path]:
    """Those of `collection_texts`."""
    origins = [source.passages_file, *(files.queries for split, files in source.split_files.items() if split == TRAIN)]
    return [origin for origin in origins if isinstance(origin, Path)]


def collection_texts(source: Source, max_doc_character: int) -> Iterator[str]:
    """Every passage, then every train query, as they are encoded."""
    texts = chain(encoded_texts(source.passages(), max_doc_character), encoded_queries(source.queries(TRAIN)))
    return (text for _, text in texts)


def untrained(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION)
    return tokenizer


def frequent_characters(texts: Iterable[str], tokenizer: Tokenizer, count: int) -> list[str]:
    """The ``count`` characters most frequent after normalizing (character by character), equals by code point."""
    occurrences: Counter[str] = Counter()
    for text in texts:
        occurrences.update(text)
    normalized: Counter[str] = Counter()
    for character, times in occurrences.items():
        for part in tokenizer.normalizer.normalize_str(character):
            normalized[part] += times
    return sorted((c for c in normalized if not c.isspace()), key=lambda c: (-normalized[c], c))[:count]


def stands_alone(character: str) -> bool:
    """Whether BERT's pre-tokenizer makes it a word of its own: ASCII's symbols and Unicode's punctuation."""
    return (character.isascii() and not character.isalnum()) or unicodedata.category(character).startswith("P")


def train_vocabulary(open_texts: Callable[[], Iterator[str]], vocab_size: int) -> dict[str, int]:
    """At most ``vocab_size`` tokens and their ids; the same texts give the same ones. Reads the texts twice.

    Left to itself, the trainer numbers the single characters in the order of a hash table seeded again for each
    process, breaks ties between equally frequent merges by these numbers, and so never gives the same vocabulary twice.
    Here every character has its number before training starts.
    """
    from tokenizers import trainers

    tokenizer = untrained()
    alphabet = frequent_characters(open_texts(), tokenizer, min(MAX_ALPHABET, vocab_size // 4))
    continuations = [CONTINUATION + character for character in sorted(alphabet) if not stands_alone(character)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS.values(), *continuations],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    tokenizer.train_from_iterator(open_texts(), trainer)
    return tokenizer.get_vocab()


def train_tokenizer(open_texts: Callable[[], Iterator[str]], vocab_size: int) -> Tokenizer:
    """The tokenizer of `train_vocabulary`, with its special tokens and ``[CLS] … [SEP]`` around a text."""
    from tokenizers import processors

    tokenizer = untrained(train_vocabulary(open_texts, vocab_size))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """Names the class, so that AutoTokenizer does not ask the config.json next to it, whose model type is ours."""
    roles: dict[str, object] = {f"{role}_token": token for role, token in SPECIAL_TOKENS.items()}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **roles}


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write both files whole, tokenizer.json last: where it is, the tokenizer is complete."""
    with staged_directory(directory) as staged:
        (staged / CONFIG_FILE).write_text(json.dumps(tokenizer_config(), indent=1) + "\n", encoding="utf-8")
        (staged / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
        publish(staged, directory, (CONFIG_FILE, TOKENIZER_FILE))


def check_inputs(source: Source, out_dir: Path) -> None:
    """UserError for a collection without train queries, and for a taken directory."""
    if TRAIN not in source.split_files:
        raise UserError(
            f"{source.passages_file}: next to it are the splits {', '.join(source.split_files)}, expected train among "
            "them: the tokenizer is trained on its queries"
        )
    for name in (TOKENIZER_FILE, "vocab.txt", "vocab.json"):
        if (out_dir / name).exists():
            raise UserError(f"{out_dir} already holds a tokenizer ({name}); remove it or choose another directory")
    check_can_write(out_dir)


def main() -> None:
    flags = parse_flags(WordPieceFlags, "wordpiece")
    source, out_dir = open_source(flags.source_request, files_read), Path(flags.out_dir)
    check_inputs(source, out_dir)
    if answer_dry_run(flags):
        return
    tokenizer = train_tokenizer(lambda: collection_texts(source, flags.max_doc_character), flags.vocab_size)
    save_tokenizer(tokenizer, out_dir)
    say(f"{out_dir}: {tokenizer.get_vocab_size()} tokens, lower-case WordPiece")


if __name__ == "__main__":
    run_program("wordpiece", main)
