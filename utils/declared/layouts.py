"""The words of --from and --to: how published models lie on the disk, and which of them each layout can hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A word of --from and --to.

    Args:
        description: for --help.
        reads: the model types that it is read as; none: it is only written.
        writes: those that can be written so.
        reader: "module:function", see `model.formats.loaded.Reader`.
        writer: "module:function", see `model.formats.loaded.Writer`.
        is_file: whether it is one file, not a directory.
        targets: all that it converts into, where that is less than its model types allow.
    """

    description: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    reader: str = ""
    writer: str = ""
    is_file: bool = False
    targets: tuple[str, ...] = ()


ANCE, ENCODER, TOWERS = "rdot_nll", "hf", "dpr"  # the model types that other layouts know

LAYOUTS = {
    "ours": Layout(
        "a checkpoint of this project",
        (ANCE, ENCODER, TOWERS),
        (ANCE, ENCODER, TOWERS),
        "model.checkpoints:read",
        "model.checkpoints:write",
    ),
    "ance": Layout(
        "ANCE's FirstP and MaxP",
        (ANCE,),
        (ANCE,),
        "model.formats.ance:read",
        "model.formats.ance:write_ance",
    ),
    "pyserini": Layout(
        "Pyserini's AnceEncoder",
        (ANCE,),
        (ANCE,),
        "model.formats.ance:read",
        "model.formats.ance:write_with_positions",
    ),
    "drhard": Layout(
        "DRhard's STAR, ADORE, Inbatch and Rand",
        (ANCE,),
        (ANCE,),
        "model.formats.ance:read",
        "model.formats.ance:write_with_positions",
    ),
    "sentence-transformers": Layout(
        "a directory with modules.json",
        (ANCE, ENCODER),
        (ANCE, ENCODER, TOWERS),
        "model.checkpoints:read_sentence_transformers",
        "model.checkpoints:write_sentence_transformers",
    ),
    "dpr": Layout(
        "DPR's and ANCE's .cp, one file",
        (TOWERS,),
        (TOWERS,),
        "model.formats.dpr:read_file",
        "model.formats.dpr:write_file",
        is_file=True,
    ),
    "hf-dpr": Layout(
        "Hugging Face's DPR: two directories, or two in one",
        (TOWERS,),
        (TOWERS,),
        "model.formats.dpr:read_directories",
        "model.formats.dpr:write_directories",
    ),
    "tct-colbert": Layout(
        "TCT-ColBERT's BERT",
        (ENCODER,),
        reader="model.formats.tct_colbert:read",
        targets=("ours",),
    ),
}


def conversions() -> str:
    """For --help: a line for each word, with what it converts into."""
    lines = [f"  {word}: {layout.description}; into {', '.join(targets_of(word))}" for word, layout in LAYOUTS.items()]
    return "\n".join(["how IN lies on the disk, and what it converts into:", *lines])


def targets_of(word: str) -> list[str]:
    """The words of --to that a model read as ``word`` may be written as."""
    source = LAYOUTS[word]
    fitting = [other for other, layout in LAYOUTS.items() if set(layout.writes) & set(source.reads)]
    return [other for other in fitting if not source.targets or other in source.targets]
