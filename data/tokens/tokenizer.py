"""From a passage to the text that is encoded, and from that to token ids, by the tokenizer and at its own speed.

Loading a tokenizer and telling one from another are here as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.sources.base import Passage
from utils.errors import UserError, one_line
from utils.exchange.atomic import read_json, sha256_of
from utils.exchange.layout import TOKENIZER_FILE
from utils.exchange.model_files import CONFIG, TOKENIZER_FILES, TOKENIZER_OPTIONS, body_directory, body_folder
from utils.exchange.sentence_files import lower_case, lower_cases_tokens, transformer_settings
from utils.hub import has_hub, hub_settings, is_path
from utils.prefetch import overlapped

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

OLDER_TYPES = {"vocab.json": "roberta", "vocab.txt": "bert"}  # where nothing else says it
# What differs between two files of one tokenizer and changes no token id of a text.
WITHOUT_EFFECT = ("padding", "truncation", "decoder", "version")
BATCH_TEXTS = 5_000
BATCH_CHARACTERS = 2_000_000  # bounds the memory of a batch of long documents, about 100 bytes a token
PROBE = "a b c d e f g h i j k l"

Text = str | tuple[str, str]  # what a tokenizer is given: one segment, or two


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a directory (or hub name), lower-casing where sentence-transformers' files say so.

    UserError where there is none.
    """
    path = body_directory(Path(directory))
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{path} holds no tokenizer, expected one of {', '.join(TOKENIZER_FILES)} there")
    if not path.is_dir() and (path.is_absolute() or str(directory).startswith(".")):
        raise UserError(f"{directory} is not a directory, expected the one that holds the tokenizer")
    from transformers import AutoTokenizer

    try:
        is_local = is_path(str(directory))
        settings = Path(directory) if is_local else hub_settings(str(directory)) or path
        options: dict[str, Any] = {"local_files_only": is_local or not has_hub()}
        if not is_local:
            options["subfolder"] = body_folder(settings)
        tokenizer = AutoTokenizer.from_pretrained(str(path), **options, **older_type(path))
    except Exception as error:  # whatever a damaged file makes transformers or tokenizers raise
        raise UserError(
            f"{directory}: no tokenizer could be loaded ({one_line(error)[:200]}); "
            "give a directory with tokenizer.json and tokenizer_config.json"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{directory}: {type(tokenizer).__name__} is not a fast tokenizer; save it with a tokenizer.json"
        )
    if lower_cases_tokens(settings):
        lower_case(tokenizer.backend_tokenizer)
    return tokenizer


def older_type(directory: Path) -> dict[str, str]:
    """What tells transformers the kind of a tokenizer that is known by the name of its file alone, as before 2.4."""
    if not (directory / CONFIG).is_file() or (directory / TOKENIZER_FILE).is_file():
        return {}
    options = directory / TOKENIZER_OPTIONS[0]
    says_type = "model_type" in read_json(directory / CONFIG)
    if says_type or (options.is_file() and "tokenizer_class" in read_json(options)):
        return {}
    found = [kind for name, kind in OLDER_TYPES.items() if (directory / name).is_file()]
    return {"tokenizer_type": found[0]} if found else {}


def fingerprint_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of all that decides which ids a text becomes.

    The tokenizer is hashed as loaded, not its file: transformers writes another tokenizer.json than it has read (merges
    as pairs, prefixes as "" for null, flags of added tokens), and a checkpoint holds such a rewritten copy.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in WITHOUT_EFFECT:
        state.pop(key, None)
    if tokenizer.backend_tokenizer.encode_special_tokens:  # split_special_tokens, which the state does not tell
        state["encode_special_tokens"] = True
    state["added_tokens"] = sorted([token["id"], token["content"]] for token in state["added_tokens"])
    return hashlib.sha256(json.dumps(_canonical(state), sort_keys=True).encode()).hexdigest()


def _canonical(state: Any) -> Any:
    """Without nulls and empty strings, which mean the same, and ``trim_offsets``, which concerns no id."""
    if isinstance(state, dict):
        return {k: _canonical(v) for k, v in state.items() if v not in (None, "") and k != "trim_offsets"}
    if isinstance(state, list):
        return [_canonical(value) for value in state]
    return state


def tokenizer_fingerprint(directory: str | Path) -> str:
    """`fingerprint_of` the tokenizer in ``directory``. UserError where there is none."""
    return fingerprint_of(load_tokenizer(directory))


def tokenizer_files(directory: str | Path) -> dict[str, str]:
    """{name: sha256} of the tokenizer's files; empty for a hub name.

    What has it lower-case is one of them, where it does not by itself.
    """
    folder = body_directory(Path(directory))
    paths = [folder / name for name in (*TOKENIZER_FILES, *TOKENIZER_OPTIONS)]
    if lower_cases_tokens(Path(directory)):
        paths.append(transformer_settings(folder)[0])
    return {path.name: sha256_of(path) for path in paths if path.is_file()}


def local_tokenizer(name: str, stored_in: Path) -> list[Path]:
    """The tokenizer's files, which every checkpoint takes along.

    One from the hub, or that lower-cases because of other files, is stored in ``stored_in``.
    """
    directory = Path(name)
    if not directory.is_dir() or lower_cases_tokens(directory):
        directory = stored_in
        load_tokenizer(name).save_pretrained(str(directory))
    return [body_directory(directory) / file for file in tokenizer_files(directory)]


def clean_text(text: str) -> str:
    """Without blanks at its end, which no profile encodes: ANCE's ``rstrip``."""
    return text.rstrip()


def join_fields(fields: Sequence[str | None], separator: str, omits_blank: bool) -> str:
    """Those that are there, without blanks at their ends; ``omits_blank``: and of them those that hold any text."""
    found = [clean_text(field) for field in fields if field is not None]
    return separator.join(filter(None, found) if omits_blank else found)


def encoded_text(passage: Passage, max_doc_character: int) -> str:
    """A passage as one plain text: url, title and text, those that are not blank, joined by a blank; as in BEIR.

    It is cut at so many characters. The profile ``hf`` encodes it; BM25 takes its words from it.
    """
    return join_fields((passage.url, passage.title, passage.text), " ", omits_blank=True)[:max_doc_character]


def encoded_queries(queries: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(query_id, the query's plain text)."""
    return ((query_id, clean_text(text)) for query_id, text in queries)


def encoded_texts(passages: Iterable[Passage], max_doc_character: int) -> Iterator[tuple[str, str]]:
    """(passage_id, `encoded_text`) of each passage."""
    return ((passage.passage_id, encoded_text(passage, max_doc_character)) for passage in passages)


def text_batches(texts: Iterable[tuple[str, Text]]) -> Iterator[tuple[list[str], list[Text]]]:
    """(id, text) pairs in batches of at most 5,000, fewer where the texts are long."""
    ids: list[str] = []
    batch: list[Text] = []
    characters = 0
    for text_id, text in texts:
        ids.append(text_id)
        batch.append(text)
        characters += len(text) if isinstance(text, str) else sum(map(len, text))
        if len(ids) == BATCH_TEXTS or characters >= BATCH_CHARACTERS:
            yield ids, batch
            ids, batch, characters = [], [], 0
    if ids:
        yield ids, batch


def encoder_at(backend: Tokenizer, max_length: int) -> Callable[[Sequence[Text]], list[list[int]]]:
    """texts -> token ids of each, cut at ``max_length`` tokens including the special ones; the one way a text becomes
    tokens here.

    Of the tokenizer's files all that decides ids is obeyed. What they say of padding and of cutting, its side and its
    length, is not: a text keeps its beginning, as in ANCE, of two segments the longer is cut first, and batches are
    padded later. Nothing else may encode with this tokenizer meanwhile at another length.
    """
    backend.no_padding()
    backend.enable_truncation(max_length)
    return lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts)]


def tokenized(
    texts: Iterable[tuple[str, Text]], backend: Tokenizer, max_length: int
) -> Iterator[tuple[list[str], list[list[int]]]]:
    """(ids, token ids of each) in batches, cut at ``max_length`` tokens including the special ones.

    The library works on all cores by itself, without Python's lock. Two batches are in work at once, so that the cores
    have one while the other is turned into Python's lists, and while the caller reads and writes.
    """
    encode_texts = encoder_at(backend, max_length)

    def encode(batch: tuple[list[str], list[Text]]) -> tuple[list[str], list[list[int]]]:
        ids, batch_texts = batch
        return ids, encode_texts(batch_texts)

    return overlapped(encode, text_batches(texts), threads=2)


def check_tokenizer_cuts(tokenizer: PreTrainedTokenizerBase, *max_lengths: int) -> None:
    """UserError unless a text cut at each length is its first tokens and its last one, with room for a token of text.

    The token cache relies on it to cut a text again at a smaller length.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    special, whole = backend.num_special_tokens_to_add(False), backend.encode(PROBE).ids
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token; name one in its tokenizer_config.json (pad_token)")
    if min(max_lengths) <= special:
        raise UserError(
            f"texts cut at {min(max_lengths)} tokens hold nothing but the {special} special ones; "
            "raise --max_seq_length or --max_query_length"
        )
    backend.enable_truncation(special + 1)
    if backend.encode(PROBE).ids != [*whole[:special], whole[-1]]:
        raise UserError(
            "the tokenizer puts no end token after a text, expected one (as [SEP] or </s>); "
            "add it to the post-processor of its tokenizer.json"
        )
