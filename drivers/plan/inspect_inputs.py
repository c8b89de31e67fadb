"""What a plan has to know of a raw collection and of a model's directory; reads no passage but the first ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data.sources.base import Passage, Source
from data.sources.qrels import read_split
from data.tokens.text_agreement import text_settings_for
from data.tokens.text_profile import text_preparer
from data.tokens.tokenizer import clean_text, encoded_text, load_tokenizer
from drivers.plan.facts import CollectionFacts, Lengths, ModelFacts
from model.encoders.registry import read_spec
from utils.declared.model_types import QUERY_TOWER
from utils.declared.text_profiles import RECORDED_PROFILES
from utils.declared.text_settings import TEXT_KEYS, TextSettings
from utils.errors import UserError
from utils.exchange.atomic import read_json
from utils.exchange.evaluations import TRAIN
from utils.exchange.model_files import CONFIG, LENGTHS, SAFETENSORS, body_directory
from utils.model_texts import length_or_default, recorded_lengths

SAMPLE = 2_000  # passages and queries whose tokens are counted
MOST_CHARACTERS = 10_000  # of a passage, as data.msmarco_data cuts it
NOT_GIVEN: Mapping[str, str | None] = dict.fromkeys(TEXT_KEYS)
TOKENS_OF_A_WORD = 1.5  # where there is no tokenizer yet
RDOT_HEAD = "embeddingHead.weight"  # of ANCE's models
# Of a config, DistilBERT's names the second: layers, width.
SIZES = (("num_hidden_layers", "n_layers"), ("hidden_size", "dim"))


def inspect_collection(
    source: Source, model_dir: str, model_type: str, given: Mapping[str, str | None] = NOT_GIVEN
) -> CollectionFacts:
    """UserError where a split cannot be read, or has no judged query, or train none with a positive.

    Args:
        source: The collection.
        model_dir: Where the tokenizer is, and how texts become tokens; "" estimates a text's tokens from its words.
        model_type: A word of --model_type.
        given: What is said of texts, as `text_settings_for` takes it.
    """
    queries: dict[str, int] = {}
    positives = 0.0
    texts: list[str] = []
    for split in judged_splits(source):
        found = read_split(source, split, allow_missing=False)
        judged = {query for query, _ in found.judgements if query in found.queries}
        if not judged:
            raise UserError(f"{source.split_files[split].qrels} judges no query, expected some; fetch it again")
        queries[split] = len(judged)
        if split == TRAIN:
            positives = sum(grade >= 1 for grade in found.judgements.values()) / len(judged)
        if not texts or split == TRAIN:
            texts = list(islice((text for query, text in found.queries.items() if query in judged), SAMPLE))
    passages = list(islice(source.passages(), SAMPLE))
    if model_dir:
        settings, _ = text_settings_for(model_dir, model_type, given)
        passage_lengths, query_lengths = text_lengths(passages, texts, model_dir, settings)
    else:
        passage_lengths = estimated_lengths(encoded_text(passage, MOST_CHARACTERS) for passage in passages)
        query_lengths = estimated_lengths(map(clean_text, texts))
    return CollectionFacts(
        source=str(source.record["source"]),
        passages=source.estimate_passages() or sum(1 for _ in source.passages()),
        queries=queries,
        positives=positives,
        passage_lengths=passage_lengths,
        query_lengths=query_lengths,
    )


def judged_splits(source: Source) -> list[str]:
    """Those that have qrels."""
    return [split for split, files in source.split_files.items() if files.qrels is not None]


def text_lengths(
    passages: Sequence[Passage], queries: Sequence[str], model_dir: str, settings: TextSettings
) -> tuple[Lengths, Lengths]:
    """Of passages and queries as data.msmarco_data by itself makes them into tokens, the model's prefixes among them.

    Args:
        passages, queries: Their texts as the source has them.
        model_dir: Where the tokenizer is.
        settings: How texts become tokens.
    """
    preparer = text_preparer(settings, load_tokenizer(model_dir), MOST_CHARACTERS)
    backend = preparer.backend
    backend.no_truncation()
    backend.no_padding()
    passage_encodings = backend.encode_batch_fast(list(map(preparer.passage, passages)))
    query_encodings = backend.encode_batch_fast(list(map(preparer.query, queries)))
    return lengths_of(map(len, passage_encodings)), lengths_of(map(len, query_encodings))


def estimated_lengths(texts: Iterable[str]) -> Lengths:
    return lengths_of(2 + round(TOKENS_OF_A_WORD * len(text.split())) for text in texts)


def lengths_of(tokens: Iterable[int]) -> Lengths:
    """At least one, so that there is something to plan with."""
    return Lengths(np.sort(np.array(list(tokens) or [1], np.int64)))


def config_of(directory: Path) -> Path:
    """The config.json of a model. UserError where there is none."""
    config = body_directory(directory) / CONFIG
    if not config.is_file():
        raise UserError(f"{config.parent} has no {CONFIG}, expected a model's directory; is it the right one?")
    return config


def inspect_model(directory: Path, given: Mapping[str, str | None] = NOT_GIVEN) -> ModelFacts:
    """UserError where the directory holds no model, or one that no encoder here can be.

    ``given``: what is said of texts, as `text_settings_for` takes it.
    """
    found = read_json(config_of(directory))
    kind = model_type_of(directory, found)
    positions = read_spec(str(directory), kind).max_length("passage")
    recorded = recorded_lengths([str(directory)], local_only=True)
    passage, query = (length_or_default(name, recorded)[0] if name in recorded else None for name in LENGTHS)
    layers, width = (first_number(found, *names) for names in SIZES)
    settings, _ = text_settings_for(str(directory), kind, given)
    query_tokens = RECORDED_PROFILES[settings.text_profile].query_tokens
    return ModelFacts(kind, passage, positions, layers or 0, width or 0, query_tokens, query)


def first_number(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of the keys that is a number above 0: of the config, or of the queries' encoder in it."""
    both = config | config.get(QUERY_TOWER, {})
    return next((both[name] for name in names if isinstance(both.get(name), int) and both[name] > 0), None)


def model_type_of(directory: Path, config: Mapping[str, Any]) -> str:
    """The word of --model_type: by the config where it says it, else rdot_nll where there is ANCE's head, else hf."""
    if (own := config.get("model_type")) in ("static", "dpr"):
        return str(own)
    weights = body_directory(directory) / SAFETENSORS
    if weights.is_file():
        from safetensors import safe_open

        with safe_open(weights, "np") as stored:
            if RDOT_HEAD in stored.keys():  # noqa: SIM118 - it is no dictionary
                return "rdot_nll"
    return "hf"
