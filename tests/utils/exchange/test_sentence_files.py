"""Reading sentence-transformers' files: held against what sentence-transformers itself writes and reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from transformers import BertConfig, BertModel, BertTokenizerFast

from utils.errors import UserError
from utils.exchange.sentence_files import HeadModule, read_sentence_files
from utils.model_texts import recorded_lengths

WIDTH = 16
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
POOLED = {"cls": "first", "mean": "mean", "lasttoken": "last"}


@pytest.fixture(scope="module")
def body_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("body")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(vocab=str(directory / "vocab.txt")).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("pooling", POOLED)
def test_what_sentence_transformers_writes_is_read(body_dir: Path, tmp_path: Path, pooling: str) -> None:
    transformer = st.Transformer(str(body_dir), max_seq_length=24)
    head = [st.Dense(WIDTH, 8, bias=False, activation_function=None), st.LayerNorm(8), st.Normalize()]
    model = SentenceTransformer(
        modules=[transformer, st.Pooling(WIDTH, pooling), *head],
        prompts={"query": "query: ", "passage": "passage: "} if pooling == "cls" else None,
    )
    model.save(str(tmp_path))
    found = read_sentence_files(tmp_path)
    assert found is not None
    assert (found.pooling, found.max_seq_length, found.is_normalized) == (POOLED[pooling], 24, True)
    again = SentenceTransformer(str(tmp_path))
    assert again.max_seq_length == 24
    said = again.prompts.get("document") or again.prompts.get("passage", "")
    assert (found.query_prefix, found.passage_prefix) == (again.prompts.get("query", ""), said)
    assert found.head == (
        HeadModule("dense", "2_Dense", WIDTH, 8, has_bias=False),
        HeadModule("layer_norm", "3_LayerNorm", 8, 8),
        HeadModule("normalize", "4_Normalize"),
    )


LENGTHS: list[dict[str, int | None]] = [
    {"max_seq_length": 24, "query_length": 9},
    {"max_seq_length": 24, "document_length": 12},
    {"query_length": 7, "document_length": 30},
    {"query_length": 9},
]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_queries_and_passages_are_cut_where_version_6_cuts_them(
    body_dir: Path, tmp_path: Path, lengths: dict[str, int | None]
) -> None:
    """And how it compares embeddings; held against what its preprocess makes of a long text."""
    transformer = st.Transformer(str(body_dir), **lengths)
    model = SentenceTransformer(modules=[transformer, st.Pooling(WIDTH, "mean")], similarity_fn_name="dot")
    model.save(str(tmp_path))
    again, found = SentenceTransformer(str(tmp_path)), read_sentence_files(tmp_path)
    assert found is not None
    tokens = [again.preprocess(["a b " * 400], task=task)["input_ids"].shape[1] for task in ("document", "query")]
    assert [found.max_seq_length, found.max_query_length] == tokens
    assert found.similarity == again.similarity_fn_name == "dot"


def write(directory: Path, modules: list[tuple[str, str]], **files: object) -> Path:
    """Files as old versions wrote them; a name's ``__`` is a slash."""
    listed = [{"idx": n, "name": str(n), "path": path, "type": type_} for n, (type_, path) in enumerate(modules)]
    (directory / "modules.json").write_text(json.dumps(listed))
    for name, value in files.items():
        path = directory / (name.replace("__", "/") + ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
    return directory


MEAN = {"pooling_mode": "mean", "embedding_dimension": WIDTH}
OLD = [("sentence_transformers.models.Transformer", ""), ("sentence_transformers.models.Pooling", "1_Pooling")]


@pytest.mark.parametrize("key", ["pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_lasttoken"])
def test_old_keys_of_pooling(tmp_path: Path, key: str) -> None:
    """And without a Normalize, without a length, without prompts."""
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}
    config = {"word_embedding_dimension": WIDTH, **modes, key: True}
    found = read_sentence_files(write(tmp_path, OLD, **{"1_Pooling__config": config}))
    assert found is not None
    st.Pooling(WIDTH, **{key: True})  # sentence-transformers still has the key
    assert found.pooling == st.Pooling.load(str(tmp_path), subfolder="1_Pooling").pooling_mode.replace(
        "cls", "first"
    ).removesuffix("token")
    assert (found.is_normalized, found.max_seq_length, found.query_prefix, found.head) == (False, None, "", ())


def test_the_length_of_an_old_file_holds_and_lower_casing_is_read(tmp_path: Path) -> None:
    write(tmp_path, OLD, **{"1_Pooling__config": MEAN, "tokenizer_config": {"model_max_length": 512}})
    says = {"max_seq_length": 256, "do_lower_case": True}
    found = read_sentence_files(write(tmp_path, OLD, sentence_bert_config=says))
    assert found is not None and (found.max_seq_length, found.do_lower_case) == (256, True)


@pytest.mark.parametrize(
    ("kind", "limits", "expected"),
    [
        ("roberta", {}, (512, "config.json")),  # two of its positions are before a text's first token
        ("mpnet", {}, (512, "config.json")),
        ("bert", {}, (514, "config.json")),
        ("roberta", {"tokenizer_config": {"model_max_length": 300}}, (300, "tokenizer_config.json")),
        ("roberta", {"tokenizer_config": {"model_max_length": 10**30}}, (512, "config.json")),
        ("roberta", {"sentence_roberta_config": {"max_seq_length": 99}}, (99, "sentence_roberta_config.json")),
    ],
)
def test_a_length_is_of_the_file_that_says_it(
    tmp_path: Path, kind: str, limits: dict[str, object], expected: tuple[int, str]
) -> None:
    config = {"model_type": kind, "max_position_embeddings": 514, "pad_token_id": 1}
    write(tmp_path, OLD, **{"1_Pooling__config": MEAN, "config": config}, **limits)
    found = {name: (length, path.name) for name, (length, path) in recorded_lengths([str(tmp_path)], True).items()}
    assert found == {"max_seq_length": expected, "max_query_length": expected}


def test_the_nearest_of_length_1_have_the_largest_inner_products(tmp_path: Path) -> None:
    modules = [*OLD, ("sentence_transformers.models.Normalize", "2_Normalize")]
    says = {"config_sentence_transformers": {"similarity_fn_name": "euclidean"}}
    found = read_sentence_files(write(tmp_path, modules, **{"1_Pooling__config": MEAN}, **says))
    assert found is not None and found.similarity == "euclidean"


def test_no_modules_json_is_none(tmp_path: Path) -> None:
    assert read_sentence_files(tmp_path) is None


@pytest.mark.parametrize(
    ("modules", "files", "problem"),
    [
        ([("own.modeling.Body", "")], {}, "code of the model's own, which is not run"),
        ([("sentence_transformers.models.CLIPModel", "")], {}, "begins with the module CLIPModel, expected"),
        ([*OLD[:1]], {}, "has no Pooling behind the Transformer"),
        ([("sentence_transformers.models.Transformer", "../x"), OLD[1]], {}, "expected one within the model's"),
        (OLD, {"1_Pooling__config": {**MEAN, "pooling_mode": "max"}}, "pools by max, expected cls, mean or lasttoken"),
        (OLD, {"1_Pooling__config": {**MEAN, "pooling_mode": ["cls", "mean"]}}, "pools by cls and mean"),
        (OLD, {}, "1_Pooling/config.json is missing"),
        (
            [*OLD, ("sentence_transformers.models.WordWeights", "2_WordWeights")],
            {"1_Pooling__config": MEAN},
            "names the module WordWeights, expected one of Dense, LayerNorm, Normalize",
        ),
        (
            [*OLD, ("sentence_transformers.models.Dense", "2_Dense")],
            {"1_Pooling__config": MEAN, "2_Dense__config": {"in_features": 4, "out_features": "8"}},
            "says out_features '8', expected a whole number above 0",
        ),
        (
            [*OLD, ("sentence_transformers.models.Dense", "2_Dense")],
            {"1_Pooling__config": MEAN, "2_Dense__config": {"activation_function": "torch.nn.modules.activation.ReLU"}},
            "has the activation ReLU, expected Identity or Tanh alone",
        ),
        (
            OLD,
            {
                "1_Pooling__config": {**MEAN, "include_prompt": False},
                "config_sentence_transformers": {"prompts": {"query": "query: "}},
            },
            "pools without the prompt's tokens",
        ),
        (OLD, {"1_Pooling__config": MEAN, "sentence_bert_config": {"max_seq_length": -1}}, "says max_seq_length -1"),
        (
            OLD,
            {"1_Pooling__config": MEAN, "sentence_bert_config": {"query_expansion": {"length": 32}}},
            "sentence_bert_config.json fills queries up (query_expansion)",
        ),
        (
            OLD,
            {"1_Pooling__config": MEAN, "config_sentence_transformers": {"truncate_dim": 8}},
            "cuts embeddings (truncate_dim), which no encoder here does",
        ),
        (
            OLD,
            {"1_Pooling__config": MEAN, "config_sentence_transformers": {"similarity_fn_name": "euclidean"}},
            "compares embeddings by euclidean distance, indices here by inner product",
        ),
        (
            [*OLD, ("sentence_transformers.models.Normalize", "2_Normalize")],
            {"1_Pooling__config": MEAN, "config_sentence_transformers": {"similarity_fn_name": "manhattan"}},
            "compares embeddings by manhattan distance",
        ),
        (
            OLD,
            {"1_Pooling__config": MEAN, "config_sentence_transformers": {"prompts": ["query: "]}},
            "has prompts ['query: '], expected an object of texts",
        ),
    ],
)
def test_what_no_encoder_does_is_said_in_one_line(
    tmp_path: Path, modules: list[tuple[str, str]], files: dict[str, object], problem: str
) -> None:
    with pytest.raises(UserError) as raised:
        read_sentence_files(write(tmp_path, modules, **files))
    assert problem in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[", "{}", "[]", "[1]", '[{"type": "x"}]', "\xff"])
def test_a_damaged_modules_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"modules\.json is damaged: expected a list of modules"):
        read_sentence_files(tmp_path)
