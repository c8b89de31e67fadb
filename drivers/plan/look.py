"""What a plan has to know of a raw collection and of a model's directory; reads no passage but the first ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data.sources.base import Source
from data.sources.qrels import read_judgements
from data.tokens.tokenizer import clean_text, encoded_text, load_tokenizer
from drivers.plan.facts import CollectionFacts, Lengths, ModelFacts
from model.encoders.registry import read_spec
from utils.errors import UserError
from utils.exchange.atomic import read_json
from utils.exchange.evaluations import TRAIN
from utils.exchange.model_files import CONFIG, SAFETENSORS
from utils.exchange.sentence_files import read_sentence_files

SAMPLE = 2_000  # passages and queries whose lengths are looked at
MOST_CHARACTERS = 10_000  # of a passage, as data.msmarco_data cuts it
TOKENS_OF_A_WORD = 1.5  # where there is no tokenizer yet
RDOT_HEAD = "embeddingHead.weight"  # of ANCE's models
QUERY_ENCODER = "question_model"  # in the config of two towers
# Of a config, DistilBERT's names the second: layers, width.
SIZES = (("num_hidden_layers", "n_layers"), ("hidden_size", "dim"))


def look_at_collection(source: Source, tokenizer_dir: str) -> CollectionFacts:
    """UserError where a split cannot be read, or there is no judged query.

    Args:
        source: The collection.
        tokenizer_dir: Where the tokenizer is; "" estimates a text's tokens from its words.
    """
    queries: dict[str, int] = {}
    positives = 0.0
    texts: list[str] = []
    for split in judged_splits(source):
        judgements, _ = read_judgements(source.qrels(split))
        judged = {query for (query, _), grade in judgements.items() if grade >= 1 or split != TRAIN}
        queries[split] = len(judged)
        if split == TRAIN and judged:
            positives = sum(grade >= 1 for grade in judgements.values()) / len(judged)
        if not texts or split == TRAIN:
            texts = [text for query, text in islice(source.queries(split), SAMPLE) if query in judged]
    passages = [encoded_text(passage, MOST_CHARACTERS) for passage in islice(source.passages(), SAMPLE)]
    return CollectionFacts(
        source=str(source.record["source"]),
        passages=source.estimate_passages() or sum(1 for _ in source.passages()),
        queries=queries,
        positives=positives,
        passage_lengths=token_lengths(passages, tokenizer_dir),
        query_lengths=token_lengths([clean_text(text) for text in texts], tokenizer_dir),
    )


def judged_splits(source: Source) -> list[str]:
    """Those that have qrels."""
    return [split for split, files in source.split_files.items() if files.qrels is not None]


def token_lengths(texts: Sequence[str], tokenizer_dir: str) -> Lengths:
    """Of each text, in tokens; at least one, so that there is something to plan with."""
    if tokenizer_dir:
        backend = load_tokenizer(tokenizer_dir).backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        found = [len(encoding.ids) for encoding in backend.encode_batch_fast(list(texts))]
    else:
        found = [2 + round(TOKENS_OF_A_WORD * len(text.split())) for text in texts]
    return Lengths(np.sort(np.array(found or [1], np.int64)))


def look_at_model(directory: Path) -> ModelFacts:
    """UserError where the directory holds no model, or one that no encoder here can be."""
    config = directory / CONFIG
    if not config.is_file():
        raise UserError(f"{directory} has no {CONFIG}, expected a model's directory; is it the right --model?")
    found, files = read_json(config), read_sentence_files(directory)
    recorded = found.get("max_seq_length")
    trained = recorded if isinstance(recorded, int) else files.max_seq_length if files is not None else None
    kind = model_type_of(directory, found)
    positions = read_spec(str(directory), kind).max_length("passage")
    layers, width = (first_number(found, *names) for names in SIZES)
    return ModelFacts(kind, trained, positions, layers or 0, width or 0)


def first_number(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of the keys that is a number above 0: of the config, or of the queries' encoder in it."""
    both = config | config.get(QUERY_ENCODER, {})
    return next((both[name] for name in names if isinstance(both.get(name), int) and both[name] > 0), None)


def model_type_of(directory: Path, config: Mapping[str, Any]) -> str:
    """The word of --model_type: by the config where it says it, else rdot_nll where there is ANCE's head, else hf."""
    if (own := config.get("model_type")) in ("static", "dpr"):
        return str(own)
    weights = directory / SAFETENSORS
    if weights.is_file():
        from safetensors import safe_open

        with safe_open(weights, "np") as stored:
            if RDOT_HEAD in stored.keys():  # noqa: SIM118 - it is no dictionary
                return "rdot_nll"
    return "hf"
