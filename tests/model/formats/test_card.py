"""README.md of a model: YAML that the hub reads, and what is known of the run and of its texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from model.formats.card import card_text, write_card
from utils.exchange.model_files import CARD

RECORD = {
    "model_type": "rdot_nll",
    "strategy": "ranks:21-60",
    "refresh": 3,
    "step": 3000,
    "max_steps": 10000,
    "run_id": "0f1e2d",
    "collection_fingerprint": "ab|cd",
    "git": {"commit": "abc", "dirty": False},
}


def parts(text: str) -> tuple[dict[str, object], str]:
    """By the hub's own reader."""
    card = ModelCard(text)
    return card.data.to_dict(), card.text


@pytest.mark.parametrize("base", ["", "FacebookAI/roberta-base", "checkpoint-800", "a: b/c #d", "results/runs/x"])
def test_what_the_hub_reads(base: str) -> None:
    """Only a name that the hub may have is a base model."""
    front, body = parts(card_text({}, {**RECORD, "base": base}))
    assert front["library_name"] == "sentence-transformers" and front["pipeline_tag"] == "sentence-similarity"
    assert "sentence-transformers" in front["tags"]  # type: ignore[operator]
    assert front.get("base_model") == ({"FacebookAI/roberta-base": base}.get(base))
    assert ("started from" in body) == bool(base)


def test_the_record_of_the_run_is_a_table() -> None:
    _, body = parts(card_text({}, RECORD))
    lines = [line for line in body.splitlines() if line.startswith("| ")]
    rows = dict(line[2:-2].split(" | ", 1) for line in lines[2:])
    assert rows["negatives"] == "ranks:21-60" and rows["step"] == "3000" and rows["of steps"] == "10000"
    assert rows["collection"] == "ab\\|cd" and "seed" not in rows


@pytest.mark.parametrize(
    ("config", "said", "unsaid"),
    [
        ({}, ["is not recorded"], ["cut at"]),
        ({"text_profile": "hf"}, ["`hf`", "join url, title and text by a blank."], ["is not recorded", "lower-case"]),
        (
            {"text_profile": "ance"},
            ["`ance`", "files here lower-case; the rest", "on both sides", "by `<sep>`"],
            ["blank"],
        ),
        ({"text_profile": "ance-warmup"}, ["not lower-cased", "on both sides"], ["the files here"]),
        ({"text_profile": "star"}, ["files here lower-case", "on the right", "a blank before each"], ["both sides"]),
        ({"text_profile": "dpr"}, ["`title [SEP] text`"], ["<sep>", "lower-case"]),
        ({"max_seq_length": 128, "max_query_length": 64}, ["at 64 tokens and passages at 128", "encode_query"], []),
        ({"max_seq_length": 128, "max_query_length": 128}, ["Texts are cut at 128 tokens."], ["passages at"]),
        ({"query_prefix": 'a "b": '}, ['A query begins with "a \\"b\\": "'], ["A passage begins"]),
    ],
)
def test_what_is_done_to_texts(config: dict[str, object], said: list[str], unsaid: list[str], tmp_path: Path) -> None:
    write_card(tmp_path, config, {})
    texts = (tmp_path / CARD).read_text().partition("## Texts")[2].partition("## Use")[0]
    assert all(words in texts for words in said) and not any(words in texts for words in unsaid)
