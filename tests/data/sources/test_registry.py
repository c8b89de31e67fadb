"""data.sources.registry: the words of --source, and what a split may be called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.sources import registry
from data.sources.base import Passage, SourceRequest, source_files
from data.sources.msmarco import find_collection
from data.sources.registry import SourceWord, open_source, request_of_record
from data.tokens.tokenizer import encoded_text
from utils.errors import UserError


def test_a_word_finds_its_source(tiny_collection: Path) -> None:
    expected = find_collection(tiny_collection, 1)
    for request in (
        SourceRequest(tiny_collection),
        SourceRequest(tiny_collection, "msmarco"),
        SourceRequest(tiny_collection, data_type="1"),
        request_of_record(expected.record, str(tiny_collection)),
        request_of_record({"data_type": 1}, str(tiny_collection)),  # as of older versions
    ):
        assert open_source(request) == expected


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a split"])
def test_a_split_whose_name_cannot_begin_a_file_is_refused(
    tiny_collection: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = find_collection(tiny_collection, 1)
    splits = {**found.split_files, name: found.split_files["dev"]}
    monkeypatch.setitem(
        registry.SOURCES, "odd", SourceWord("odd", lambda _: replace(found, split_files=splits), is_in_directory=False)
    )
    with pytest.raises(UserError, match=r"has a split .*rename it"):
        open_source(SourceRequest(None, "odd"))


def test_a_file_that_two_splits_share_is_named_once(tiny_collection: Path) -> None:
    found = find_collection(tiny_collection, 1)
    twice = replace(found, split_files={**found.split_files, "test": found.split_files["dev"]})
    assert source_files(twice) == source_files(found)


def test_the_fields_that_a_passage_has_are_encoded() -> None:
    fields = {"text": "the text \n", "title": "Title "}
    assert encoded_text(Passage("p", **fields), 100) == "Title the text"
    assert encoded_text(Passage("p", **{**fields, "title": ""}), 100) == "the text"
    assert encoded_text(Passage("p", fields["text"]), 5) == "the t"
