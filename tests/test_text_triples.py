"""Batches from triples.train.small.tsv, against the tokenizer called directly."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from data.text_triples import batches_of_text_triples, make_text_batch, open_text_tokenizer, read_text_triples
from data.training_data import Batch
from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH
from utils.errors import UserError

PAD = 0


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


def test_an_empty_file_is_refused_and_never_looped_over(tmp_path: Path) -> None:
    (tmp_path / "triples.tsv").touch()
    with pytest.raises(UserError, match="is empty"):
        next(batches_of_text_triples(tmp_path / "triples.tsv", 4))


def test_batches_are_endless_in_file_order(tmp_path: Path, triples: list[tuple[str, str, str]]) -> None:
    path = write(tmp_path / "triples.tsv", triples)
    batches = list(islice(batches_of_text_triples(path, 4), 10))
    assert [len(batch) for batch in batches] == [4] * 10
    assert [triple for batch in batches for triple in batch] == triples * 4


def direct_ids(tokenizer_dir: Path, text: str, max_length: int) -> list[int]:
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    return tokenizer.encode(text).ids


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer"):
        open_text_tokenizer(tmp_path, PAD)


def test_texts_are_tokenized_cut_and_padded(tiny_tokenizer: Path, triples: list[tuple[str, str, str]]) -> None:
    texts = [triples[0][0], triples[0][1], triples[1][1], "a"]
    ids_BL, lengths_B = open_text_tokenizer(tiny_tokenizer, 77)(texts, 12)
    expected = [direct_ids(tiny_tokenizer, text, 12) for text in texts]
    assert ids_BL.dtype == lengths_B.dtype == np.int64
    assert ids_BL.shape == (4, 12) and lengths_B.tolist() == [len(row) for row in expected]
    assert ids_BL.tolist() == [row + [77] * (12 - len(row)) for row in expected]


def rows_of(batch: Batch) -> list[tuple[list[int], list[int], list[int]]]:
    queries = [ids[:n].tolist() for ids, n in zip(batch.query_ids_BL, batch.query_lengths_B, strict=True)]
    passages = [ids[:n].tolist() for ids, n in zip(batch.passage_ids_ML, batch.passage_lengths_M, strict=True)]
    places = zip(batch.query_index_T, batch.positive_index_T, batch.negative_index_T, strict=True)
    return [(queries[q], passages[p], passages[n]) for q, p, n in places]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_batch_equals_a_direct_tokenization(
    tiny_tokenizer: Path, triples: list[tuple[str, str, str]], ranks: int
) -> None:
    tokenize = open_text_tokenizer(tiny_tokenizer, PAD)
    lengths = (TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH)
    found = []
    for rank in range(ranks):
        batch = make_text_batch(triples, rank, ranks, tokenize, *lengths, in_batch=False)
        assert len(batch.query_ids_BL) == 5, "equal texts are encoded once"
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
    tokenize = open_text_tokenizer(tiny_tokenizer, PAD)
    texts = [sorted({text for _, p, n in half for text in (p, n)}) for half in (triples[:2], triples[2:])]
    columns = texts[0] + texts[1]
    known = {(query, positive) for query, positive, _ in triples}
    for rank in range(2):
        batch = make_text_batch(triples, rank, 2, tokenize, 8, 8, in_batch=True)
        assert batch.allowed_TG is not None and batch.target_T is not None
        for t, (query, positive, _) in enumerate(triples[2 * rank : 2 * rank + 2]):
            scored = [columns[g] for g in np.flatnonzero(batch.allowed_TG[t])]
            expected = {text for text in columns if (query, text) not in known} | {positive}
            assert sorted(scored) == sorted(expected)
            assert columns[batch.target_T[t]] == positive
