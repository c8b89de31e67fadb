"""Batches from triples.train.small.tsv, against the tokenizer called directly."""

from __future__ import annotations

import gzip
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data.sources.msmarco import read_passages, read_queries
from data.tokens.text_profile import TextPreparer, text_preparer
from data.tokens.token_cache import TokenCacheWriter, open_token_cache
from data.tokens.tokenizer import load_tokenizer, tokenized
from data.training.batches import Batch
from data.training.text_triples import (
    batches_of_text_triples,
    make_text_batch,
    prepared_triples,
    read_text_triples,
    text_tokenizer,
)
from drivers.train.warmup_source import size_of_triples
from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH
from tests.texts import listed
from utils.declared.text_settings import DEFAULT_TEXTS
from utils.errors import UserError
from utils.exchange.atomic import dump_with_checksum

PAD = 0


def preparer_of(tokenizer: Path, max_doc_character: int = 10_000) -> TextPreparer:
    return text_preparer(DEFAULT_TEXTS, load_tokenizer(tokenizer), max_doc_character)


@pytest.fixture
def triples(tiny_collection: Path) -> list[tuple[str, str, str]]:
    """10 triples of the tiny collection's own texts; the queries and the positives repeat after 5."""
    texts = [line.split("\t")[1] for line in (tiny_collection / "collection.tsv").read_text().splitlines()]
    queries = [line.split("\t")[1] for line in (tiny_collection / "queries.train.tsv").read_text().splitlines()]
    return [(queries[i % 5], texts[i % 5], texts[20 + i]) for i in range(10)]


def write(path: Path, triples: list[tuple[str, str, str]]) -> Path:
    path.write_text("".join("\t".join(triple) + "\n" for triple in triples))
    return path


def test_triples_are_read_in_order_plain_or_gzipped(tmp_path: Path, triples: list[tuple[str, str, str]]) -> None:
    plain = write(tmp_path / "triples.tsv", triples)
    gzipped = tmp_path / "triples.tsv.gz"
    gzipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_text_triples(plain)) == list(read_text_triples(gzipped)) == triples


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"one\ttwo\n", "2 columns"),
        (b"one\ttwo\tthree\tfour\n", "4 columns"),
        (b"\n", "1 columns"),
        (b"one\t \tthree\n", "blank"),
        (b"one\ttwo\tthr\xffee\n", "UTF-8"),
        (b"one\ttwo\tthree", "no line end"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "triples.tsv"
    path.write_bytes(b"a\tb\tc\n" * 2 + line)
    with pytest.raises(UserError, match=rf"triples.tsv, line 3: .*{complaint}"):
        list(read_text_triples(path))


def test_an_empty_file_is_refused_and_never_looped_over(tmp_path: Path, tiny_tokenizer: Path) -> None:
    (tmp_path / "triples.tsv").touch()
    with pytest.raises(UserError, match="is empty"):
        next(batches_of_text_triples(tmp_path / "triples.tsv", 4, preparer_of(tiny_tokenizer)))


def test_batches_are_endless_in_file_order(
    tmp_path: Path, tiny_tokenizer: Path, triples: list[tuple[str, str, str]]
) -> None:
    path = write(tmp_path / "triples.tsv", triples)
    batches = list(islice(batches_of_text_triples(path, 4, preparer_of(tiny_tokenizer)), 10))
    assert [len(batch) for batch in batches] == [4] * 10
    assert [triple for batch in batches for triple in batch] == triples * 4


def direct_ids(tokenizer_dir: Path, text: str, max_length: int) -> list[int]:
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    return tokenizer.encode(text).ids


def test_texts_are_tokenized_and_cut(tiny_tokenizer: Path, triples: list[tuple[str, str, str]]) -> None:
    texts = [triples[0][0], triples[0][1], triples[1][1], "a"]
    tokens_T, offsets_B1 = text_tokenizer(load_tokenizer(tiny_tokenizer).backend_tokenizer)(texts, 12)
    assert tokens_T.dtype == offsets_B1.dtype == np.int64
    assert listed(tokens_T, offsets_B1) == [direct_ids(tiny_tokenizer, text, 12) for text in texts]


def rows_of(batch: Batch) -> list[tuple[list[int], list[int], list[int]]]:
    queries = listed(batch.query_tokens_T, batch.query_offsets_B1)
    passages = listed(batch.passage_tokens_T, batch.passage_offsets_M1)
    places = zip(batch.query_index_T, batch.positive_index_T, batch.negative_index_T, strict=True)
    return [(queries[q], passages[p], passages[n]) for q, p, n in places]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_batch_equals_a_direct_tokenization(
    tiny_tokenizer: Path, triples: list[tuple[str, str, str]], ranks: int
) -> None:
    tokenize = text_tokenizer(load_tokenizer(tiny_tokenizer).backend_tokenizer)
    lengths = (TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH)
    found = []
    for rank in range(ranks):
        batch = make_text_batch(triples, rank, ranks, tokenize, *lengths, is_over_batch=False)
        assert len(batch.query_offsets_B1) == 5 + 1, "equal texts are encoded once"
        assert batch.allowed_TG is None
        found += rows_of(batch)
    assert found == [
        (
            direct_ids(tiny_tokenizer, query, lengths[0]),
            direct_ids(tiny_tokenizer, positive, lengths[1]),
            direct_ids(tiny_tokenizer, negative, lengths[1]),
        )
        for query, positive, negative in triples
    ]


def test_the_batch_s_known_pairs_are_masked(tiny_tokenizer: Path) -> None:
    triples = [
        ("red fox", "first", "second"),
        ("red fox", "third", "fourth"),  # a second positive of the same query
        ("blue", "fourth", "first"),  # the first query's positive and negative, as this one's negative and positive
        ("green", "fifth", "sixth"),
    ]
    tokenize = text_tokenizer(load_tokenizer(tiny_tokenizer).backend_tokenizer)
    texts = [sorted({text for _, p, n in half for text in (p, n)}) for half in (triples[:2], triples[2:])]
    columns = texts[0] + texts[1]
    known = {(query, positive) for query, positive, _ in triples}
    for rank in range(2):
        batch = make_text_batch(triples, rank, 2, tokenize, 8, 8, is_over_batch=True)
        assert batch.allowed_TG is not None and batch.target_T is not None
        for t, (query, positive, _) in enumerate(triples[2 * rank : 2 * rank + 2]):
            scored = [columns[g] for g in np.flatnonzero(batch.allowed_TG[t])]
            expected = {text for text in columns if (query, text) not in known} | {positive}
            assert sorted(scored) == sorted(expected)
            assert columns[batch.target_T[t]] == positive


# The same text becomes the same tokens, whether it comes with a triple or from the collection.

BLANKS = " \u00a0\u2003\u3000\u200b\u0085\u2028\x0b\x0c\x1c\x1f\x00\x7f"
WORDS = [*BLANKS, *"abdefgo.,É\u0301ßİ中", "[SEP]", "ba be", "\ud7ff"]
TEXTS = st.builds(
    lambda words, blanks: "".join([*words, *blanks]),
    st.one_of(st.lists(st.sampled_from(WORDS), max_size=size) for size in (5, 60)),
    st.lists(st.sampled_from(BLANKS), max_size=3),
).filter(str.strip)
TRUNCATIONS = [None, *({"direction": side, "max_length": 7, "strategy": strategy, "stride": 2}
               for side in ("Left", "Right") for strategy in ("LongestFirst", "OnlyFirst"))]  # fmt: skip
PADDINGS = [None, *({"strategy": strategy, "direction": side, "pad_to_multiple_of": 8,
                     "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
            for strategy in ("BatchLongest", {"Fixed": 20}) for side in ("Left", "Right"))]  # fmt: skip

BLANKS_ARE_TOKENS = {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False}
POST_PROCESSORS = [
    {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    {
        "type": "RobertaProcessing",
        "sep": ["[SEP]", 3],
        "cls": ["[CLS]", 2],
        "trim_offsets": True,
        "add_prefix_space": True,
    },
]


@st.composite
def tokenizer_changes(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to change in tokenizer.json and in tokenizer_config.json."""
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": draw(st.booleans()),
        "handle_chinese_chars": draw(st.booleans()),
        "strip_accents": draw(st.sampled_from([None, True, False])),
        "lowercase": draw(st.booleans()),
    }
    words = draw(st.sampled_from([{"type": "BertPreTokenizer"}, {"type": "WhitespaceSplit"}, BLANKS_ARE_TOKENS]))
    state = {
        "truncation": draw(st.sampled_from(TRUNCATIONS)),
        "padding": draw(st.sampled_from(PADDINGS)),
        "normalizer": normalizer,
        "pre_tokenizer": words,
        "post_processor": draw(st.sampled_from(POST_PROCESSORS)),
    }
    config = {
        "truncation_side": draw(st.sampled_from(["left", "right"])),
        "padding_side": draw(st.sampled_from(["left", "right"])),
        "model_max_length": draw(st.sampled_from([4, 512])),
        "split_special_tokens": draw(st.booleans()),
        "do_lower_case": draw(st.booleans()),
        "strip_accents": draw(st.booleans()),
        "clean_up_tokenization_spaces": draw(st.booleans()),
    }
    return state, config


def changed_tokenizer(source: Path, directory: Path, state: dict[str, Any], config: dict[str, Any]) -> Path:
    shutil.copytree(source, directory)
    for name, changes in (("tokenizer.json", state), ("tokenizer_config.json", config)):
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


def cached_ids(
    texts: list[str], is_query: bool, tokenizer: Path, directory: Path, characters: int, cut: int
) -> list[list[int]]:
    """Of the texts as preprocessing reads them and a driver cuts them: kept at 16 tokens, read at ``cut``."""
    path = directory / "texts.tsv"
    path.write_text("".join(f"t{number}\t{text}\n" for number, text in enumerate(texts)), newline="\n")
    preparer = preparer_of(tokenizer, characters)
    queries = ((name, preparer.query(text)) for name, text in read_queries(path))
    passages = ((passage.passage_id, preparer.passage(passage)) for passage in read_passages(path, 1))
    with TokenCacheWriter(directory, "texts", 70_000) as writer:
        for names, rows in tokenized(queries if is_query else passages, preparer.backend, 16):
            writer.append(names, rows)
    return listed(*open_token_cache(directory, "texts").gather(np.arange(len(texts)), cut))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(TEXTS, min_size=3, max_size=3),
    tokenizer_changes(),
    st.sampled_from([3, 7, 16]),
    st.sampled_from([1, 4, 40]),
)
def test_triples_and_the_cache_give_the_same_tokens(
    tiny_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    changes: tuple[dict[str, Any], dict[str, Any]],
    cut: int,
    characters: int,
) -> None:
    directory = tmp_path_factory.mktemp("both")
    tokenizer = changed_tokenizer(tiny_tokenizer, directory / "tokenizer", *changes)
    (directory / "triples.tsv").write_text("\t".join(texts) + "\n", newline="\n")
    preparer = preparer_of(tokenizer, characters)
    (triple,) = prepared_triples(directory / "triples.tsv", preparer)
    found = listed(*text_tokenizer(preparer.backend)(list(triple), cut))
    cached = cached_ids(texts[:1], True, tokenizer, directory, characters, cut)
    assert found == cached + cached_ids(texts[1:], False, tokenizer, directory, characters, cut)
    library = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    library.no_truncation(), library.no_padding()
    library.encode_special_tokens = changes[1]["split_special_tokens"]
    clean = [texts[0].rstrip(), *(text.rstrip()[:characters] for text in texts[1:])]
    whole = [encoding.ids for encoding in library.encode_batch(clean)]
    assert found == [ids if len(ids) <= cut else [*ids[: cut - 1], ids[-1]] for ids in whole]


def test_a_run_s_triples_are_known_by_size_until_their_run_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was requeued resumes its own run, whatever its flags say."""
    path = tmp_path / "triples.tsv"
    path.write_text("a\tb\tc\n")
    assert size_of_triples(path, tmp_path, overwrites=False) == 6
    run = {"run_id": "r", "science": {"triples_bytes": 5}, "job": "17"}
    (tmp_path / "RUN.json").write_text(dump_with_checksum(run))
    assert [size_of_triples(path, tmp_path, overwrites) for overwrites in (False, True)] == [5, 6]
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert size_of_triples(path, tmp_path, overwrites=True) == 5
