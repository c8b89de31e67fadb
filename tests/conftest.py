"""A collection small enough for every test, and a tokenizer made for it.

`tiny_collection` is the test's own copy and may be damaged. `shared_collection`, `tiny_tokenizer` and
`tiny_preprocessed` are one for all tests: read only.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

TINY_PASSAGES, TINY_TRAIN_QUERIES, TINY_DEV_QUERIES = 300, 60, 20
TINY_MAX_SEQ_LENGTH, TINY_MAX_QUERY_LENGTH = 32, 16
TINY_VOCABULARY = 500
LONGEST = [  # of those with slow tests, each of them half a minute or more
    "test_slurm.py",
    "test_compile.py",
    "test_faults.py",
    "test_scripts.py",
    "test_benchmarks.py",
    "test_resume.py",
    "test_loop.py",
    "test_launch.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The fast files first; then those with slow tests, the longest first, so that no worker is left alone with it."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}

    def turn(item: pytest.Item) -> int:
        if item.path not in slow:
            return -1
        return LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)

    items.sort(key=turn)


def made_up_words(count: int, rng: random.Random) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
        words["".join(syllables)] = None
    return list(words)


def write_tiny_collection(directory: Path) -> None:
    """300 passages of 12 to 40 words, half of them common words, half drawn from 600 rarer ones.

    Every query holds three of its positive's rarer words and a common one; every tenth has a second positive, made to
    share the three. Passage ids are p3, p10, p17, … so that an id is never an offset.
    """
    rng = random.Random(7)
    words = made_up_words(640, rng)
    common, rare = words[:40], words[40:]
    passages: list[list[str]] = []
    for _ in range(TINY_PASSAGES):
        half = rng.randint(6, 20)
        passages.append([*rng.sample(rare, half), *rng.choices(common, k=half)])
    ids = [f"p{7 * offset + 3}" for offset in range(TINY_PASSAGES)]
    answers = rng.sample(range(TINY_PASSAGES), TINY_TRAIN_QUERIES + TINY_DEV_QUERIES)
    for split, first, count in (
        ("train", 0, TINY_TRAIN_QUERIES),
        ("dev.small", TINY_TRAIN_QUERIES, TINY_DEV_QUERIES),
    ):
        queries, qrels = [], []
        for number, answer in enumerate(answers[first : first + count], first):
            shared = passages[answer][:3]
            queries.append(f"q{number}\t{' '.join([*rng.sample(shared, 3), rng.choice(common)])}\n")
            qrels.append(f"q{number}\t0\t{ids[answer]}\t1\n")
            if number % 10 == 0:
                second = rng.choice([offset for offset in range(TINY_PASSAGES) if offset not in answers])
                passages[second] += shared
                qrels.append(f"q{number}\t0\t{ids[second]}\t1\n")
        (directory / f"queries.{split}.tsv").write_text("".join(queries))
        (directory / f"qrels.{split}.tsv").write_text("".join(qrels))
    for passage in passages:
        rng.shuffle(passage)
    lines = (f"{passage_id}\t{' '.join(passage)}.\n" for passage_id, passage in zip(ids, passages, strict=True))
    (directory / "collection.tsv").write_text("".join(lines))


def write_tiny_tokenizer(directory: Path, texts: list[str]) -> None:
    """A lower-casing WordPiece tokenizer of 500 tokens at most that puts a text between [CLS] and [SEP].

    By `data.wordpiece`, for tokenizers' own trainer gives another vocabulary in each process, with which every seeded
    model and score of the tests would be another one from run to run.
    """
    from data.wordpiece import tokenizer_config, train_tokenizer

    train_tokenizer(lambda: iter(texts), TINY_VOCABULARY).save(str(directory / "tokenizer.json"))
    config = {**tokenizer_config(), "model_max_length": 512}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def shared_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("raw")
    write_tiny_collection(directory)
    return directory


@pytest.fixture
def tiny_collection(shared_collection: Path, tmp_path: Path) -> Path:
    """The raw directory of a small MS MARCO passage collection (--data_type 1), this test's own."""
    return Path(shutil.copytree(shared_collection, tmp_path / "tiny_raw"))


@pytest.fixture(scope="session")
def tiny_tokenizer(shared_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer directory; [PAD] is 0."""
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(directory, (shared_collection / "collection.tsv").read_text().splitlines())
    return directory


@pytest.fixture(scope="session")
def tiny_preprocessed(shared_collection: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny collection preprocessed with the tiny tokenizer at 32 and 16 tokens."""
    from data.msmarco_data import PreprocessSettings, preprocess
    from data.sources.msmarco import find_collection
    from data.tokens.tokenizer import load_tokenizer

    directory = tmp_path_factory.mktemp("preprocessed")
    settings = PreprocessSettings(str(tiny_tokenizer), TINY_MAX_SEQ_LENGTH, TINY_MAX_QUERY_LENGTH)
    preprocess(find_collection(shared_collection, 1), load_tokenizer(tiny_tokenizer), directory, settings)
    return directory
