"""The model that a program starts from: whether its files are whole, and what it is known by."""

from __future__ import annotations

from pathlib import Path

from data.tokens.tokenizer import TOKENIZER_FILES, TOKENIZER_OPTIONS
from model.encoders.registry import read_config
from model.hub import model_directory
from model.train.checkpoint import OPTIMIZER, RNG_STATES
from utils.errors import UserError
from utils.exchange.atomic import load_with_checksum
from utils.exchange.checkpoints import model_sha256
from utils.exchange.layout import MANIFEST, SCHEDULER, TRAINER_STATE
from utils.exchange.model_files import CONFIG, config_sha256
from utils.exchange.verify import check_files
from utils.flag_groups import ModelTypeFlags, TrainingFlags

RANDOM_WEIGHTS = "random weights"  # what the seed and the config decide


def identity_of(name_or_path: str, model_type: str, config_name: str = "") -> dict[str, str]:
    """All that decides what the initial model computes, as science: its weights and its config.

    ``name_or_path`` is a directory, a hub name, or empty for random weights of ``config_name``; its tokenizer is known
    by the collection's fingerprint. `check_checkpoint` has verified its files, where it has a manifest. UserError where
    files are missing.
    """
    directory = str(model_directory(name_or_path)) if name_or_path else ""
    return {
        "initial_model_sha256": model_sha256(Path(directory)) if directory else RANDOM_WEIGHTS,
        "initial_config_sha256": config_sha256(read_config(directory, model_type, config_name)),
    }


def check_checkpoint(flags: ModelTypeFlags, model_dir: str) -> str:
    """Hold the files that will be read of a checkpoint against its manifest, and say so.

    One without a manifest (ANCE's, a hub download) is taken as it is. UserError where a file is missing or damaged.
    """
    path = Path(model_dir)
    if not (path / MANIFEST).is_file():
        return f"checkpoint: {model_dir} has no {MANIFEST}, and is taken as it is"
    try:
        check_files(path, load_with_checksum(path / MANIFEST), unread_files(flags, path))
    except UserError as error:
        raise UserError(f"{error}; copy the checkpoint again, or take another") from None
    return f"checkpoint: {model_dir} is what its {MANIFEST} says"


def unread_files(flags: ModelTypeFlags, path: Path) -> set[str]:
    """The files of a checkpoint that a program with ``flags`` does not need: gigabytes of the optimiser, above all."""
    unread = {RNG_STATES}
    if not (isinstance(flags, TrainingFlags) and flags.load_optimizer_scheduler):
        unread |= {OPTIMIZER, SCHEDULER}
    if flags.tokenizer_name:
        unread |= {*TOKENIZER_FILES, *TOKENIZER_OPTIONS}
    if flags.config_name:
        unread.add(CONFIG)
    if not (path / TRAINER_STATE).is_file():  # an evaluation takes the step from there, where it is
        unread.add(TRAINER_STATE)
    return unread
