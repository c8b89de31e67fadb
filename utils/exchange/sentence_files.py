"""sentence-transformers' files of a model's directory: which modules follow each other, and how a text is cut.

``modules.json`` names the modules in their order, each with its folder, where its config.json and weights are. What
its ``encode_query`` and ``encode_document`` put in front of a text is in config_sentence_transformers.json
(sentence-transformers 6: base/model.py, sentence_transformer/model.py, sentence_transformer/modules/pooling.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.declared.positions import usable_positions
from utils.declared.text_profiles import RECORDED_PROFILES
from utils.errors import UserError
from utils.exchange.atomic import read_json
from utils.exchange.model_files import CONFIG, MODULES, body_directory, modules_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SETTINGS = "config_sentence_transformers.json"
# Of the transformer, by the kind of body: the first that is there holds.
TRANSFORMER = "sentence_bert_config.json"
TRANSFORMERS = (
    TRANSFORMER,
    *(f"sentence_{kind}_config.json" for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta")),
)
TOKENIZER_CONFIG = "tokenizer_config.json"
NO_LIMIT = 10**9  # a tokenizer without one says 10**30

RecordedLength = tuple[int | None, str]  # in tokens, and the file that says it; None and "" where none does
HeadKind = Literal["dense", "layer_norm", "normalize"]

BODIES = ("Transformer", "StaticEmbedding")
HEAD_KINDS: dict[str, HeadKind] = {"Dense": "dense", "LayerNorm": "layer_norm", "Normalize": "normalize"}
# Their words of a pooling, the old keys' first.
POOLED = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "first",
    "mean": "mean",
    "lasttoken": "last",
}
OLD_POOLING = "pooling_mode_"
ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh"}


@dataclass(frozen=True)
class HeadModule:
    """A module behind the pooling.

    Args:
        kind: what it does.
        folder: its own, within the directory.
        in_features, out_features: of a linear layer; of a layer norm both are its width, of a normalisation 0.
        has_bias, activation: of a linear layer; a word of `ACTIVATIONS`.
    """

    kind: HeadKind
    folder: str
    in_features: int = 0
    out_features: int = 0
    has_bias: bool = True
    activation: str = "identity"


@dataclass(frozen=True)
class SentenceFiles:
    """What sentence-transformers' files say of a model.

    Args:
        body: the first module: `BODIES`.
        body_folder: where its config.json and weights are; "" for the directory itself.
        pooling: first, mean or last; "" where the body has one row for a text already.
        head: the modules behind the pooling, in their order.
        max_seq_length, max_query_length: tokens that encode_document and encode_query keep; None where nothing says it.
        length_files: which files in the body's folder say the one and the other, "" where nothing does.
        do_lower_case: texts are lower-cased, whatever the tokenizer does by itself.
        query_prefix, passage_prefix: put in front of a text.
        similarity: how their ``similarity`` compares embeddings: cosine, dot, euclidean; "" where nothing says it.
    """

    body: str
    body_folder: str = ""
    pooling: str = ""
    head: tuple[HeadModule, ...] = ()
    max_seq_length: int | None = None
    max_query_length: int | None = None
    length_files: tuple[str, str] = ("", "")
    do_lower_case: bool = False
    query_prefix: str = ""
    passage_prefix: str = ""
    similarity: str = ""

    @property
    def is_normalized(self) -> bool:
        """Whether each embedding has length 1."""
        return bool(self.head) and self.head[-1].kind == "normalize"


def read_sentence_files(directory: Path) -> SentenceFiles | None:
    """What the files in ``directory`` say; None where there is no modules.json.

    UserError where a file is damaged, or asks for what no encoder here does: a module, a pooling or an activation.
    """
    path = directory / MODULES
    if not path.is_file():
        return None
    (body, body_folder), *others = modules_of(path)
    if body not in BODIES:
        raise UserError(f"{path} begins with the module {body}, expected {' or '.join(BODIES)}; take another model")
    settings = read_json(directory / SETTINGS) if (directory / SETTINGS).is_file() else {}
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise UserError(f"{directory / SETTINGS} has prompts {prompts!r}, expected an object of texts: it is damaged")
    query_prefix = first_prompt(prompts, ["query"])
    passage_prefix = first_prompt(prompts, ["document", "passage", "corpus"])
    pooling = ""
    if body == "Transformer":
        if not others or others[0][0] != "Pooling":
            raise UserError(f"{path} has no Pooling behind the Transformer: no encoder of texts; take another model")
        pooling = read_pooling(directory / others.pop(0)[1] / CONFIG, bool(query_prefix or passage_prefix))
    found, transformer = transformer_settings(directory / body_folder)
    (longest_passage, passage_file), (longest_query, query_file) = read_lengths(found, transformer)
    files = SentenceFiles(
        body,
        body_folder,
        pooling,
        tuple(read_head_module(path, kind, folder) for kind, folder in others),
        longest_passage,
        longest_query,
        (passage_file, query_file),
        bool(transformer.get("do_lower_case")),
        query_prefix,
        passage_prefix,
        str(settings.get("similarity_fn_name") or ""),
    )
    check_settings(directory / SETTINGS, settings, files)
    return files


def check_settings(path: Path, settings: Mapping[str, Any], files: SentenceFiles) -> None:
    """Hold the settings of the whole model against what encoders and indices here do.

    Args:
        path: of the settings.
        settings: what they say.
        files: what all files say.

    Raises:
        UserError: rows are compared in another way than by the inner product, or are cut.
    """
    # Of rows of length 1 the nearest are those of the largest inner product.
    if files.similarity == "manhattan" or (files.similarity == "euclidean" and not files.is_normalized):
        raise UserError(
            f"{path} compares embeddings by {files.similarity} distance, indices here by inner product; "
            "take another model"
        )
    if settings.get("truncate_dim"):
        raise UserError(f"{path} cuts embeddings (truncate_dim), which no encoder here does; take another model")


def read_pooling(path: Path, has_prompts: bool) -> str:
    """First, mean or last; UserError where Pooling's config says another. ``has_prompts``: for queries or passages."""
    config = read_json(path)
    found = config.get("pooling_mode")
    if found is None:
        found = [key for key, is_on in config.items() if key.startswith(OLD_POOLING) and is_on] or ["mean"]
    words = [found] if isinstance(found, str) else list(found)
    if len(words) != 1 or words[0] not in POOLED:
        found_words = " and ".join(str(word).removeprefix(OLD_POOLING) for word in words)
        raise UserError(f"{path} pools by {found_words}, expected cls, mean or lasttoken; take another model")
    if has_prompts and not config.get("include_prompt", True):
        raise UserError(f"{path} pools without the prompt's tokens, which no encoder here does; take another model")
    return POOLED[words[0]]


def read_head_module(modules: Path, kind: str, folder: str) -> HeadModule:
    """UserError where ``modules``, modules.json, names one that no encoder here has."""
    if kind not in HEAD_KINDS:
        known = ", ".join(HEAD_KINDS)
        raise UserError(f"{modules} names the module {kind}, expected one of {known}; take another model")
    path = modules.parent / folder / CONFIG
    if kind == "Normalize":
        return HeadModule("normalize", folder)
    config = read_json(path)
    if kind == "LayerNorm":
        width = whole_number(path, config, "dimension")
        return HeadModule("layer_norm", folder, width, width)
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in ACTIVATIONS or config.get("use_residual"):
        what = "a residual" if name in ACTIVATIONS else f"the activation {name}"
        raise UserError(f"{path} has {what}, expected {' or '.join(ACTIVATIONS)} alone; take another model")
    return HeadModule(
        "dense",
        folder,
        whole_number(path, config, "in_features"),
        whole_number(path, config, "out_features"),
        bool(config.get("bias", True)),
        ACTIVATIONS[name],
    )


def transformer_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The transformer's own settings in its folder, and their file; nothing where there is none."""
    found = next((folder / name for name in TRANSFORMERS if (folder / name).is_file()), None)
    return found or folder / TRANSFORMER, read_json(found) if found else {}


def lower_cases_tokens(directory: Path) -> bool:
    """Whether sentence-transformers' files have the tokenizer lower-case, and neither does the model's text profile.

    A RoBERTa that lower-cases has one (`utils.model_texts`).
    """
    if not (directory / MODULES).is_file():
        return False
    folder = body_directory(directory)
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    profile = RECORDED_PROFILES.get(str(config.get("text_profile")))
    is_done = config.get("model_type") == "roberta" or (profile is not None and profile.lower_cases)
    return bool(transformer_settings(folder)[1].get("do_lower_case")) and not is_done


def lower_case(backend: Tokenizer) -> None:
    """Have a tokenizer lower-case before all else, unless it lower-cases already (base/modules/transformer.py)."""
    from tokenizers import normalizers

    own: Any = backend.normalizer  # stubs do not know that a Sequence has parts
    is_sequence = isinstance(own, normalizers.Sequence)
    parts = list(own) if is_sequence else [own] if own is not None else []
    if not any(isinstance(part, normalizers.Lowercase) or getattr(part, "lowercase", False) for part in parts):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])


def read_lengths(path: Path, config: Mapping[str, Any]) -> tuple[RecordedLength, RecordedLength]:
    """Tokens kept of a passage and of a query.

    Version 6 has a length for either side, else one for both (base/modules/transformer.py: ``preprocess``); it leaves
    that to the tokenizer, and reads no more than the body's positions.

    Args:
        path: of the transformer's settings.
        config: what they say.

    Raises:
        UserError: a length is no number, or queries are filled up.
    """
    if config.get("query_expansion"):
        raise UserError(f"{path} fills queries up (query_expansion), which no encoder here does; take another model")
    if config.get("max_seq_length") is not None:
        of_both: RecordedLength = whole_number(path, config, "max_seq_length"), path.name
    else:
        of_both = length_of_tokenizer_or_body(path.parent)
    passage, query = (
        of_both if config.get(key) is None else (whole_number(path, config, key), path.name)
        for key in ("document_length", "query_length")
    )
    return passage, query


def length_of_tokenizer_or_body(folder: Path) -> RecordedLength:
    """The smaller of the tokenizer's limit and the positions that the body has for a text's tokens."""
    tokenizer, body = (
        read_json(folder / name) if (folder / name).is_file() else {} for name in (TOKENIZER_CONFIG, CONFIG)
    )
    said = [(tokenizer.get("model_max_length"), TOKENIZER_CONFIG), (positions_of(body), CONFIG)]
    found = [(value, name) for value, name in said if type(value) is int and 0 < value < NO_LIMIT]
    return min(found, default=(None, ""))


def positions_of(config: Mapping[str, Any]) -> int | None:
    """The most tokens of a text for a body of such a config.json; None where it does not say it."""
    positions, pad_id = config.get("max_position_embeddings"), config.get("pad_token_id")
    if type(positions) is not int:
        return None
    usable = usable_positions(str(config.get("model_type")), positions, pad_id if type(pad_id) is int else None)
    return usable if usable > 0 else None  # some models without a table of positions say -1


def whole_number(path: Path, config: Mapping[str, Any], name: str) -> int:
    """UserError where the config in ``path`` has no number above 0 under that name."""
    value = config.get(name)
    if type(value) is not int or value <= 0:
        raise UserError(f"{path} says {name} {value!r}, expected a whole number above 0: it is damaged")
    return value


def first_prompt(prompts: Mapping[str, Any], names: list[str]) -> str:
    """The first that says something; encode_document of version 6 overlooks ``passage`` where ``document`` is not."""
    return next((str(prompts[name]) for name in names if prompts.get(name)), "")
