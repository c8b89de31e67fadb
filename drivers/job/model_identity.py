"""The model that a program starts from: whether its files are whole, and what it is known by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from model.adapter_base import check_base
from model.encoders.registry import encoder_type, read_config
from model.train.checkpoint import OPTIMIZER, RNG_STATES
from utils.errors import UserError
from utils.exchange.atomic import load_with_checksum
from utils.exchange.checkpoints import model_sha256
from utils.exchange.layout import MANIFEST, SCHEDULER, TRAINER_STATE
from utils.exchange.model_files import CARD, CONFIG, TOKENIZER_FILES, TOKENIZER_OPTIONS, config_sha256
from utils.exchange.sentence_files import read_sentence_files
from utils.exchange.verify import check_files
from utils.hub import describe_unknown_modules, hub_settings, is_path, model_directory

RANDOM_WEIGHTS = "random weights"  # what the seed and the config decide


@dataclass(frozen=True)
class ModelSettings:
    """The model that a program starts from; a name that is empty is the model's own.

    Args:
        name_or_path: a directory, a hub name, or empty for random weights of ``config_name``.
        model_type: a word of `model.encoders.registry`.
        config_name: the directory or file of another config.
        tokenizer_name: the directory of another tokenizer.
        resumes_optimizer: its optimiser and schedule are read, too.
        query_name_or_path: the directory or hub name of another, which the queries' tower begins as.
        changes: replace what its config says.
    """

    name_or_path: str
    model_type: str
    config_name: str = ""
    tokenizer_name: str = ""
    resumes_optimizer: bool = False
    query_name_or_path: str = ""
    changes: Mapping[str, object] = field(default_factory=dict)

    @property
    def tokenizer(self) -> str:
        """Its directory or hub name."""
        return self.tokenizer_name or self.name_or_path

    @property
    def query_model(self) -> ModelSettings | None:
        """What the queries' tower begins as, where that is another model."""
        name = self.query_name_or_path
        return replace(self, name_or_path=name, query_name_or_path="", changes={}) if name else None

    def at(self, path: Path) -> ModelSettings:
        """The same of the model in a directory."""
        return replace(self, name_or_path=str(path))


def identity_of(model: ModelSettings) -> dict[str, str]:
    """All that decides what the initial model computes, as it is recorded: its weights and its config.

    Its tokenizer is known by the collection's fingerprint. `check_checkpoint` has verified its files, where it has a
    manifest. UserError where files are missing.
    """
    directory = str(model_directory(model.name_or_path)) if model.name_or_path else ""
    config = {**read_config(directory, model.model_type, model.config_name), **model.changes}
    return {
        **(identity_of_query_model(model) if model.query_name_or_path else {}),
        "initial_model_sha256": model_sha256(Path(directory)) if directory else RANDOM_WEIGHTS,
        "initial_config_sha256": config_sha256(config),
    }


def identity_of_query_model(model: ModelSettings) -> dict[str, str]:
    """The same of the model that the queries' tower begins as."""
    directory = model_directory(model.query_name_or_path)
    return {
        "initial_query_model_sha256": model_sha256(directory),
        "initial_query_config_sha256": config_sha256(read_config(str(directory), model.model_type, model.config_name)),
    }


def check_checkpoint(model: ModelSettings) -> str:
    """Hold the files that will be read of a checkpoint against its manifest, and its adapters' base against theirs.

    One without a manifest (ANCE's, a hub download) is taken as it is. UserError where a file is missing or damaged.
    """
    path = Path(model.name_or_path)
    check_base(path)
    if not (path / MANIFEST).is_file():
        unknown = describe_unknown_modules(model.name_or_path, model.model_type)
        remark = f"; {unknown}" if unknown else describe_cosine_scores(model)
        return f"checkpoint: {path} has no {MANIFEST}, and is taken as it is{remark}"
    try:
        check_files(path, load_with_checksum(path / MANIFEST), unread_files(model))
    except UserError as error:
        raise UserError(f"{error}; copy the checkpoint again, or take another") from None
    return f"checkpoint: {path} is what its {MANIFEST} says"


def describe_cosine_scores(model: ModelSettings) -> str:
    """What to give where sentence-transformers' scores are not those of the embeddings as they are; else ""."""
    if not encoder_type(model.model_type).has_modules or "normalize" in model.changes:
        return ""
    directory = Path(model.name_or_path)
    if not is_path(model.name_or_path):
        directory = hub_settings(model.name_or_path, local_only=True) or directory
    files = read_sentence_files(directory)
    if files is None or files.similarity != "cosine" or files.is_normalized:
        return ""
    return "; scores are inner products, sentence-transformers' files say cosine: --normalize computes that"


def unread_files(model: ModelSettings) -> set[str]:
    """The files of the checkpoint that the program does not need: gigabytes of the optimiser, above all."""
    unread = {RNG_STATES, CARD}
    if not model.resumes_optimizer:
        unread |= {OPTIMIZER, SCHEDULER}
    if model.tokenizer_name:
        unread |= {*TOKENIZER_FILES, *TOKENIZER_OPTIONS}
    if model.config_name:
        unread.add(CONFIG)
    if not (Path(model.name_or_path) / TRAINER_STATE).is_file():  # an evaluation takes the step from there, where it is
        unread.add(TRAINER_STATE)
    return unread
