"""README.md of a published model: what made it, and what its reader must do to texts. Hugging Face's hub shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from model.formats.sentence import profile_of
from utils.declared.text_profiles import TextProfile
from utils.exchange.model_files import CARD, MODULES, POOLED_FROM, AdapterBase, base_of
from utils.hub import is_path
from utils.json_text import json_text

LIBRARY = "sentence-transformers"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
TAGS = (LIBRARY, "sentence-similarity", "feature-extraction", "dense-retrieval")
# What the card's table says of a run, in its order, by the names of manifests and trainer_state.json.
RECORDED = {
    "model_type": "model type",
    "step": "step",
    "max_steps": "of steps",
    "strategy": "negatives",
    "refresh": "refresh of the negatives",
    "loss": "loss",
    "optimizer": "optimiser",
    "learning_rate": "learning rate",
    "triples": "triples of a step",
    "seed": "seed",
    "run_id": "run",
    "science_sha256": "sha256 of the run's settings",
    "collection_fingerprint": "collection",
    "tokenizer_fingerprint": "tokenizer",
    "base": "started from",
    "initial_model_sha256": "sha256 of what it started from",
    "commit": "commit of the code",
    "read_as": "read from the layout",
}
UNKNOWN_TEXTS = "How texts were made into tokens is not recorded: ask whoever trained it whether they were lower-cased."
PROFILE = "They are of the text profile `{}`: {}."
SHORTER_QUERIES = (
    "Queries are cut at {max_query_length} tokens and passages at {max_seq_length}: use `encode_query` and "
    "`encode_document`, of sentence-transformers 6 or later."
)
OTHER_POOLING = (
    "An embedding is the mean of the last layer's states from position {} on, counted from 0. *ANCE, and the rank of "
    "its negatives* opens the files as they are. sentence-transformers has no such pooling: **it would give other "
    "vectors**."
)
ONE_LENGTH = "Texts are cut at {max_seq_length} tokens."


def write_card(directory: Path, config: Mapping[str, object], record: Mapping[str, object]) -> None:
    """Write the card of a model. It says how the files next to it open: by sentence-transformers, or not as they are.

    Args:
        directory: of the model, all of whose other files are there.
        config: its own, in which lengths, prefixes and the text profile are recorded, those that are known.
        record: of `RECORDED`, what is known of the run; ``base`` also names the base model, where it is the hub's.
    """
    opens_as_it_is = (directory / MODULES).is_file()
    text = card_text(config, record, base_of(directory), opens_as_it_is)
    (directory / CARD).write_text(text, encoding="utf-8")


def card_text(
    config: Mapping[str, object],
    record: Mapping[str, object],
    adapted: AdapterBase | None = None,
    opens_as_it_is: bool = True,
) -> str:
    """The card.

    Args:
        config, record: those of `write_card`.
        adapted: the model that the weights are adapters of; None where they are whole.
        opens_as_it_is: sentence-transformers' files are next to them; else they are of two towers, or pooled in a way
            that it does not have.
    """
    rows = [
        f"| {said} | {cell(record[name])} |" for name, said in RECORDED.items() if record.get(name) not in (None, "")
    ]
    parts = [
        front_matter(str(record.get("base") or ""), opens_as_it_is and adapted is None),
        "# A dense retriever",
        TRAINED if record.get("run_id") else CONVERTED,
        "\n".join(["| | |", "| --- | --- |", *rows]),
        "## Texts",
        texts_of(config),
        "## Use",
        *how_to_open(adapted, opens_as_it_is, config.get(POOLED_FROM)),
    ]
    return "\n\n".join(parts) + "\n"


CONVERTED = "Scores are inner products of its embeddings."
TRAINED = f"{CONVERTED} It was trained by *ANCE, and the rank of its negatives*."
USE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{}")
scores = model.similarity(model.encode_query(queries), model.encode_document(passages))
```"""
TOWERS = (
    "Queries and passages have an encoder each, both in model.safetensors. *ANCE, and the rank of its negatives* opens "
    "them as they are. For sentence-transformers convert them into its Router:"
)
ADAPTERS = (
    "These weights are adapters (LoRA, as peft writes them) of `{}`, whose weights have the sha256 `{}`; "
    "adapter_base.json names its place. *ANCE, and the rank of its negatives* opens both as one model. For "
    "sentence-transformers merge them:"
)
CONVERT = """```bash
python -m model.convert --from ours --to sentence-transformers "this directory" converted
```"""


def how_to_open(adapted: AdapterBase | None, opens_as_it_is: bool, pooled_from: object) -> list[str]:
    """The parts of the card that show it; what does not open as it is has to be converted, if it can be."""
    if pooled_from:
        return [OTHER_POOLING.format(pooled_from)]
    if adapted is None and opens_as_it_is:
        return [USE.format("this directory")]
    said = [TOWERS]
    if adapted is not None:
        name = Path(adapted.name_or_path).name if is_path(adapted.name_or_path) else adapted.name_or_path
        said = [ADAPTERS.format(name, adapted.weights_sha256)]
    return [*said, CONVERT, USE.format("converted")]


def front_matter(base: str, opens_as_it_is: bool) -> str:
    """What the hub reads: YAML, of which JSON's strings are a part. It names the library that opens the files."""
    tags = TAGS if opens_as_it_is else TAGS[1:]
    library = [f"library_name: {LIBRARY}"] if opens_as_it_is else []
    lines = ["---", *library, "pipeline_tag: sentence-similarity", "tags:", *(f"- {tag}" for tag in tags)]
    if HUB_NAME.fullmatch(base):
        lines.append(f"base_model: {json_text(base)}")
    return "\n".join([*lines, "---"])


def texts_of(config: Mapping[str, object]) -> str:
    """What is done to a text, as far as it is recorded."""
    longest, of_queries = config.get("max_seq_length"), config.get("max_query_length")
    profile = profile_of(config)
    said = [UNKNOWN_TEXTS]
    if profile is not None:  # a tag would be taken for HTML
        said = [PROFILE.format(config["text_profile"], profile.description.replace("<sep>", "`<sep>`"))]
    said += [] if profile is None else left_to_the_reader(profile)
    if longest is not None:
        lengths = {"max_seq_length": longest, "max_query_length": of_queries}
        said.append((SHORTER_QUERIES if of_queries not in (None, longest) else ONE_LENGTH).format(**lengths))
    for key, side in (("query_prefix", "query"), ("passage_prefix", "passage")):
        if config.get(key):
            said.append(f"A {side} begins with {json_text(config[key])}, which the files here put there.")
    return " ".join(said)


def left_to_the_reader(profile: TextProfile) -> list[str]:
    """What a profile does to texts and sentence-transformers, by the files here, does not."""
    found = ["Of this the files here lower-case; the rest is left to you:"] if profile.lower_cases else []
    found += ["strip texts on both sides;" if profile.strips_both else "strip texts on the right;"]
    found += ["put a blank before each text;"] if profile.adds_prefix_blank else []
    if not profile.adds_special_tokens:
        found.append(
            f"begin a passage with `{profile.passage_start.strip()}` and a query with `{profile.query_start.strip()}`, "
            f"fill a query up with `{profile.query_filler}` to {profile.query_tokens} tokens, and have the tokenizer "
            "add no special tokens (`add_special_tokens=False`);"
        )
    if profile.separator is None:
        return [*found, "write a passage as `title [SEP] text`."]
    separator = "a blank" if profile.separator == " " else f"`{profile.separator}`"
    return [*found, f"join url, title and text by {separator}."]


def cell(value: object) -> str:
    """A value of the table, on one line."""
    text = json_text(value) if isinstance(value, dict | list) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
