"""run_neighbourhood on the tiny collection against each text encoded alone, and the picture of what it writes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from drivers import run_neighbourhood
from model.encoders.registry import load_encoder
from model.encoders.static import StaticEncoder
from results.plots.curves import save
from results.plots.tsne import coordinates, neighbourhood_caption, neighbourhood_figure
from tests import forked
from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH, TINY_PASSAGES
from tests.exchanging import flip_byte
from tests.texts import token_batch
from utils.errors import UserError
from utils.exchange.atomic import dump_with_checksum
from utils.exchange.verify import signature_of
from utils.ir.query_map import Neighbourhood, read_neighbourhood, write_neighbourhood

QUERIES = {"top": (30, 12, 5), "bottom": (12, 7, 30), "corpus": (9, 30, 12)}  # of each file, in its order
TWO_POSITIVES = "q30"


def lines_of(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", name="positives")
def fixture_positives(shared_collection: Path, tiny_preprocessed: Path) -> dict[str, set[int]]:
    """The offsets of each train query's positives, by the query's own id."""
    offset_of = {passage: i for i, passage in enumerate((tiny_preprocessed / "passages.ids.txt").read_text().split())}
    found: dict[str, set[int]] = {}
    for query_id, _, passage_id, _ in lines_of(shared_collection / "qrels.train.tsv"):
        found.setdefault(query_id, set()).add(offset_of[passage_id])
    return found


@pytest.fixture(scope="module", name="query_ids")
def fixture_query_ids(tiny_preprocessed: Path) -> list[str]:
    return (tiny_preprocessed / "train-query.ids.txt").read_text().split()


Ranks = dict[str, dict[int, dict[int, int]]]  # of each passage that an arm gives a query


@pytest.fixture(scope="module", name="ranks")
def fixture_ranks(positives: dict[str, set[int]], query_ids: list[str]) -> Ranks:
    """Two arms share passages; the third has no ranks."""
    ranks: Ranks = {name: {} for name in QUERIES}
    for query in {query for queries in QUERIES.values() for query in queries}:
        order = np.random.default_rng(query).permutation(TINY_PASSAGES).tolist()
        pool = [passage for passage in order if passage not in positives[query_ids[query]]]
        ranks["top"][query] = {passage: place + 1 for place, passage in enumerate(pool[:4])}
        ranks["bottom"][query] = {passage: place + 3 for place, passage in enumerate(pool[2:8])}
        ranks["corpus"][query] = dict.fromkeys(pool[7:10], 0)
    return ranks


@pytest.fixture(scope="module", name="files")
def fixture_files(
    ranks: Ranks, positives: dict[str, set[int]], query_ids: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Our five columns; ANCE's three where there are no ranks."""
    directory = tmp_path_factory.mktemp("negatives")
    files = {}
    for name, queries in QUERIES.items():
        lines = []
        for query in queries:
            columns = [str(query), str(min(positives[query_ids[query]])), ",".join(map(str, ranks[name][query]))]
            if name != "corpus":
                columns += [
                    ",".join(map(str, ranks[name][query].values())),
                    ",".join("0.5" for _ in ranks[name][query]),
                ]
            lines.append("\t".join(columns) + "\n")
        files[name] = directory / name
        files[name].write_text("".join(lines))
    return files


@pytest.fixture(scope="module", name="model")
def fixture_model(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Path(shutil.copytree(tiny_tokenizer, tmp_path_factory.mktemp("model") / "checkpoint-7"))
    vocab_size = json.loads((tiny_preprocessed / "manifest.json").read_text())["vocab_size"]
    torch.manual_seed(4)
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 12}).save_pretrained(model)
    return model


def words_of(data_dir: Path, model: Path, files: dict[str, Path], output_dir: Path) -> list[str]:
    flags = {"data_dir": data_dir, "model_type": "static", "model_name_or_path": model, "output_dir": output_dir}
    lengths = {"max_seq_length": TINY_MAX_SEQ_LENGTH, "max_query_length": TINY_MAX_QUERY_LENGTH}
    words = [str(word) for name, value in {**flags, **lengths}.items() for word in (f"--{name}", value)]
    return [*words, "--no_cuda", "--negatives", *(f"{name}={path}" for name, path in files.items())]


def run(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run_neighbourhood", *words])
        run_neighbourhood.main()


@pytest.fixture(name="words")
def fixture_words(tiny_preprocessed: Path, model: Path, files: dict[str, Path], tmp_path: Path) -> list[str]:
    return words_of(tiny_preprocessed, model, files, tmp_path / "out")


@pytest.fixture(scope="module", name="found")
def fixture_found(
    tiny_preprocessed: Path, model: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Neighbourhood:
    """Of the default query."""
    out = tmp_path_factory.mktemp("found")
    run(*words_of(tiny_preprocessed, model, files, out), "--background", "40")
    return read_neighbourhood(out)


# What is written


@pytest.mark.parametrize("query_id", ["", TWO_POSITIVES])
def test_every_row_is_what_it_says(
    query_id: str,
    words: list[str],
    ranks: Ranks,
    positives: dict[str, set[int]],
    query_ids: list[str],
    model: Path,
    tmp_path: Path,
) -> None:
    run(*words, "--background", "40", "--query", query_id)
    with np.load(tmp_path / "out" / "neighbourhood.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    dtypes = {"embedding": np.float32, "passage": np.int64, "kind": np.int8, "rank": np.int32}
    assert {name: array.dtype for name, array in arrays.items()} == dtypes
    query_id = query_id or query_ids[12]  # the lowest offset that all three files have
    record = json.loads((tmp_path / "out" / "neighbourhood.json").read_text())
    assert (record["query_id"], record["arms"], record["model"]) == (query_id, [*QUERIES], str(model))
    query = query_ids.index(query_id)
    of_arms = [ranks[name][query] for name in QUERIES]
    negatives = sorted({passage for listed in of_arms for passage in listed})
    count = 1 + len(positives[query_id]) + len(negatives)
    known = [-1, *sorted(positives[query_id]), *negatives]
    assert arrays["passage"][:count].tolist() == known
    assert arrays["kind"].tolist() == [0] + [1] * len(positives[query_id]) + [2] * len(negatives) + [3] * 40
    others = arrays["passage"][count:].tolist()
    assert len(set(others)) == 40 and not set(others) & set(known) and 0 <= min(others) <= max(others) < TINY_PASSAGES
    expected = [[listed.get(passage, -1) for passage in [*known, *others]] for listed in of_arms]
    assert arrays["rank"].tolist() == expected
    assert record["passages"] == len(arrays["passage"]) - 1
    assert len(positives[TWO_POSITIVES]) == 2 and len(negatives) == 10, "both cases are here"


@pytest.mark.parametrize("budget_texts", ["1", "128"])
def test_every_embedding_is_that_of_the_text_alone(
    budget_texts: str,
    words: list[str],
    model: Path,
    shared_collection: Path,
    tiny_preprocessed: Path,
    tmp_path: Path,
) -> None:
    """From the raw text, with the tokenizer's own truncation."""
    from transformers import AutoTokenizer

    run(*words, "--background", "40", "--per_gpu_eval_batch_size", budget_texts)
    found = read_neighbourhood(tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    encoder = load_encoder("static", str(model), "").eval()
    queries = dict(lines_of(shared_collection / "queries.train.tsv"))
    passages = dict(lines_of(shared_collection / "collection.tsv"))
    passage_ids = (tiny_preprocessed / "passages.ids.txt").read_text().split()

    def encoded(text: str, length: int) -> np.ndarray:
        ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        with torch.no_grad():
            return np.asarray(encoder.encode(token_batch([ids]), "passage").rows[0])

    expected = [encoded(queries[found.query_id], TINY_MAX_QUERY_LENGTH)]
    expected += [encoded(passages[passage_ids[row]], TINY_MAX_SEQ_LENGTH) for row in found.passage_N[1:]]
    np.testing.assert_allclose(found.embedding_ND, expected, atol=1e-5)
    assert np.abs(found.embedding_ND - np.roll(expected, 1, axis=0)).max(1).min() > 1e-3, "no two texts are alike"


def test_the_seed_decides_the_background_alone(words: list[str], tmp_path: Path) -> None:
    runs = []
    for seed in ("1", "1", "2"):
        run(*words, "--background", "40", "--seed", seed)
        runs.append(((tmp_path / "out" / "neighbourhood.npz").read_bytes(), read_neighbourhood(tmp_path / "out")))
    (first_bytes, first), (again_bytes, _), (_, other) = runs
    assert first_bytes == again_bytes
    own = first.kind_N < 3
    assert np.array_equal(first.passage_N[own], other.passage_N[own])
    assert np.array_equal(first.embedding_ND[own], other.embedding_ND[own])
    assert set(first.passage_N[~own]) != set(other.passage_N[~own])


def test_no_background_and_all_there_is(words: list[str], tmp_path: Path) -> None:
    run(*words, "--background", "0")
    assert read_neighbourhood(tmp_path / "out").count(3) == 0
    run(*words, "--background", "1000")
    assert sorted(read_neighbourhood(tmp_path / "out").passage_N.tolist()) == [*range(-1, TINY_PASSAGES)]


def test_a_dry_run_names_the_query_and_writes_nothing(
    words: list[str], query_ids: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*words, "--dry_run")
    told = json.loads(capsys.readouterr().out)
    assert (told["resolved_query"], told["background"], told["query"]) == (query_ids[12], 300, "")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_of_several_ranks_one_writes(words: list[str], tmp_path: Path) -> None:
    run(*words)
    alone = (tmp_path / "out" / "neighbourhood.npz").read_bytes()
    shutil.rmtree(tmp_path / "out")
    assert forked.run("drivers.run_neighbourhood", *words, processes=2).count("finished ") == 1
    assert (tmp_path / "out" / "neighbourhood.npz").read_bytes() == alone


# What is refused


@pytest.fixture(name="without_weights")
def fixture_without_weights(model: Path, tmp_path: Path) -> Path:
    """Loading this model would be an error of its own."""
    copy = Path(shutil.copytree(model, tmp_path / "without_weights"))
    (copy / "model.safetensors").write_bytes(b"")
    return copy


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


ERRORS = {
    "not a pair": (["top"], [], "--negatives top is not NAME=FILE"),
    "no name": (["={top}"], [], "is not NAME=FILE"),
    "no file": (["top="], [], "--negatives top= is not NAME=FILE"),
    "twice": (["top={top}", "top={bottom}"], [], "--negatives names top twice"),
    "missing": (["top={top}", "x={top}.gone"], [], "there is no file .*top.gone"),
    "nothing shared": (["top={top}", "x={elsewhere}"], [], "no query has negatives in all of .*top, .*elsewhere"),
    "damaged": (["x={damaged}"], [], "damaged:1: not query, positive, negatives"),
    "query of another collection": (["x={far_query}"], [], "names query 60 .* the collection has 60 train"),
    "passage of another collection": (["x={far_passage}"], [], "passage 300, .* 300 passages: .*another --data_dir"),
    "unknown query": (["top={top}"], ["--query", "q999"], "--query q999 is none of the 60 train queries"),
    "query of one file": (
        ["top={top}", "bottom={bottom}"],
        ["--query", "q5"],
        "--query q5 has no negatives in .*bottom",
    ),
    "no model": (["top={top}"], ["--model_name_or_path", ""], "--model_name_or_path is missing"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_before_the_model_is_loaded(
    case: str, without_weights: Path, tiny_preprocessed: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    named = {name: str(path) for name, path in files.items()}
    named["elsewhere"] = written(tmp_path / "elsewhere", "41\t1\t2,3\n")
    named["damaged"] = written(tmp_path / "damaged", "what\n")
    named["far_query"] = written(tmp_path / "far_query", "60\t1\t2\n")
    named["far_passage"] = written(tmp_path / "far_passage", "3\t1\t300\n")
    pairs, more, message = ERRORS[case]
    words = words_of(tiny_preprocessed, without_weights, {}, tmp_path / "out")
    with pytest.raises(UserError, match=message) as caught:
        run(*words, *(pair.format(**named) for pair in pairs), *more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_query_without_a_positive_is_of_another_collection(
    tiny_preprocessed: Path, without_weights: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    data_dir = Path(shutil.copytree(tiny_preprocessed, tmp_path / "data"))
    kept = [line for line in (data_dir / "train-qrel.tsv").read_text().splitlines() if not line.startswith("12\t")]
    (data_dir / "train-qrel.tsv").write_text("".join(line + "\n" for line in kept))
    manifest = json.loads((data_dir / "manifest.json").read_text())
    manifest["counts"]["train-qrel"] = len(kept)
    manifest["files"]["train-qrel.tsv"] = signature_of(data_dir / "train-qrel.tsv")
    (data_dir / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"train query 12 of .* has no positive, .* another --data_dir"):
        run(*words_of(data_dir, without_weights, files, tmp_path / "out"))


def test_an_error_as_a_process(words: list[str], tmp_path: Path) -> None:
    (line,) = forked.run("drivers.run_neighbourhood", *words, "--query", "nobody's", code=2).splitlines()
    assert line.startswith("run_neighbourhood: error: --query nobody's is none of")
    assert not (tmp_path / "out").exists()


def test_every_damage_is_told(found: Neighbourhood, tmp_path: Path) -> None:
    record = write_neighbourhood(tmp_path, found, {"seed": 1})
    arrays = tmp_path / "neighbourhood.npz"
    whole = {path: path.read_bytes() for path in (arrays, record)}
    cases = [
        (
            lambda: flip_byte(arrays, arrays.stat().st_size // 2),
            "neighbourhood.npz: its sha256 differs .* it is damaged; run drivers",
        ),
        (lambda: arrays.write_bytes(whole[arrays][:-9]), "neighbourhood.npz: its sha256 differs"),
        (lambda: arrays.unlink(), "neighbourhood.npz is missing"),
        (lambda: record.unlink(), "neighbourhood.json is missing"),
        (lambda: flip_byte(record, record.stat().st_size // 2), "neighbourhood.json"),
        (lambda: record.write_text('{"query_id": "q12"}'), "neighbourhood.json: its sha256 differs"),
        (lambda: record.write_text(dump_with_checksum({**stored(record), "arms": ["one"]})), "for 1 arms do not fit"),
        (lambda: record.write_text(dump_with_checksum({"sha256": stored(record)["sha256"]})), "holds no neighbourhood"),
    ]
    for damage, message in cases:
        damage()
        with pytest.raises(UserError, match=message) as caught:
            read_neighbourhood(tmp_path)
        assert "\n" not in str(caught.value)
        for path, content in whole.items():
            path.write_bytes(content)
    again = read_neighbourhood(tmp_path)
    assert (again.query_id, again.arms, again.model) == (found.query_id, found.arms, found.model)
    assert np.array_equal(again.embedding_ND, found.embedding_ND) and np.array_equal(again.rank_AN, found.rank_AN)


def stored(record: Path) -> dict[str, Any]:
    value = json.loads(record.read_text())
    del value["sealed"]
    return value


# The picture


def drawn(axes: Any) -> dict[str, Any]:
    return {collection.get_label(): collection for collection in axes.collections}


def places(collection: Any) -> set[tuple[float, float]]:
    return {tuple(xy) for xy in np.asarray(collection.get_offsets()).tolist()}


def panels_of(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def expected_parts(found: Neighbourhood, arm: int) -> Iterator[tuple[str, list[int]]]:
    """Which texts stand under which label in an arm's panel."""
    label_of = {0: "query", 1: "positive", 3: "other passages"}
    parts: dict[str, list[int]] = {}
    for place, (kind, rank) in enumerate(zip(found.kind_N.tolist(), found.rank_AN[arm].tolist(), strict=True)):
        negative = {-1: "other arms' negatives", 0: "negatives without a rank"}.get(rank, "negatives by rank")
        parts.setdefault(label_of.get(kind, negative), []).append(place)
    yield from parts.items()


def test_every_text_is_drawn_once_in_every_panel(found: Neighbourhood, tmp_path: Path) -> None:
    figure = neighbourhood_figure(found)
    xy_N2 = coordinates(found.embedding_ND)
    panels = panels_of(figure)
    assert [axes.get_title(loc="left") for axes in panels] == list(found.arms)
    assert len({axes.get_position().y0 for axes in panels}) == 1, "one row"
    labels = set()
    for arm, axes in enumerate(panels):
        collections = drawn(axes)
        for label, chosen in expected_parts(found, arm):
            assert places(collections.pop(label)) == {tuple(xy) for xy in xy_N2[chosen].tolist()}, label
            labels.add(label)
        assert collections == {}
        assert axes.get_xlim() == panels[0].get_xlim() and axes.get_ylim() == panels[0].get_ylim()
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert left < xy_N2[:, 0].min() and xy_N2[:, 0].max() < right
        assert bottom < xy_N2[:, 1].min() and xy_N2[:, 1].max() < top
        assert not axes.get_xticklabels() and not axes.get_yticklabels()
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == labels and len(labels) == 6
    save(figure, tmp_path / "neighbourhood.png")
    assert (tmp_path / "neighbourhood.png").stat().st_size > 10_000


def test_a_colour_is_a_rank_in_every_panel(found: Neighbourhood) -> None:
    figure = neighbourhood_figure(found)
    figure.draw_without_rendering()
    (bar,) = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert bar.get_ylabel() == "rank" and bar.get_ylim() == (1, 8)
    top, bottom, corpus = map(drawn, panels_of(figure))
    for arm, collections in enumerate((top, bottom)):
        ranks = found.rank_AN[arm][found.rank_AN[arm] > 0]
        expected = matplotlib.colormaps["plasma"]((ranks - 1) / 7)
        np.testing.assert_allclose(collections["negatives by rank"].get_facecolors(), expected)
        assert "negatives without a rank" not in collections
        assert len(collections["other arms' negatives"].get_facecolors()) == 0, "hollow"
    (unranked,) = {tuple(colour) for colour in corpus["negatives without a rank"].get_facecolors()}
    assert unranked == to_rgba("#56B4E9") and "negatives by rank" not in corpus
    (positive,) = {tuple(colour) for colour in corpus["positive"].get_facecolors()}
    assert positive == to_rgba("#009E73")


def of_arms(found: Neighbourhood, count: int) -> Neighbourhood:
    """The same with so many arms, the known ones in turn."""
    rows = np.arange(count) % len(found.arms)
    names = tuple(f"arm {row}" for row in range(count))
    embedding_ND, rank_AN = found.embedding_ND, found.rank_AN[rows]
    return Neighbourhood(
        found.query_id, names, names, found.model, embedding_ND, found.passage_N, found.kind_N, rank_AN
    )


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (4, 1), (5, 2), (6, 2)])
def test_more_than_four_arms_make_two_rows(found: Neighbourhood, count: int, rows: int) -> None:
    figure = neighbourhood_figure(of_arms(found, count))
    figure.draw_without_rendering()
    panels = panels_of(figure)
    assert [axes.get_title(loc="left") for axes in panels] == [f"arm {row}" for row in range(count)]
    assert len({round(axes.get_position().y0, 6) for axes in panels}) == rows
    assert len({round(axes.get_position().x0, 6) for axes in panels}) == -(-count // rows)


def test_without_any_rank_there_is_no_colour_bar(found: Neighbourhood) -> None:
    corpus = found.rank_AN[2:]
    kind_N = np.where((found.kind_N == 2) & (corpus[0] < 0), 3, found.kind_N)
    alone = Neighbourhood("q", ("corpus",), ("f",), "m", found.embedding_ND, found.passage_N, kind_N, corpus)
    (axes,) = neighbourhood_figure(alone).axes
    assert set(drawn(axes)) == {"other passages", "negatives without a rank", "positive", "query"}


def test_the_layout_keeps_neighbours() -> None:
    rng = np.random.default_rng(1)
    cluster_N = np.arange(60) % 3
    embedding_ND = (10 * np.eye(8)[cluster_N] + rng.normal(size=(60, 8))).astype(np.float32)
    xy_N2 = coordinates(embedding_ND)
    assert np.array_equal(xy_N2, coordinates(embedding_ND))
    distance_NN = np.linalg.norm(xy_N2[:, None] - xy_N2[None], axis=2)
    np.fill_diagonal(distance_NN, np.inf)
    assert np.array_equal(cluster_N[distance_NN.argmin(1)], cluster_N)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_texts_can_be_laid_out(count: int) -> None:
    embedding_ND = np.random.default_rng(count).normal(size=(count, 4)).astype(np.float32)
    xy_N2 = coordinates(embedding_ND)
    assert xy_N2.shape == (count, 2) and np.isfinite(xy_N2).all()
    assert len(np.unique(xy_N2, axis=0)) == count


def test_a_collapsed_model_is_told() -> None:
    with pytest.raises(UserError, match="all 9 texts have the same embedding"):
        coordinates(np.ones((9, 4), np.float32))


def test_the_caption_says_what_is_drawn(found: Neighbourhood, query_ids: list[str], model: Path) -> None:
    caption = neighbourhood_caption(found)
    for text in (
        query_ids[12],
        "/".join(model.parts[-2:]),
        "(bottom and corpus and top)",
        f"{1 + 10 + 40} passages",
        "40 random",
        "t-SNE",
    ):
        assert text in caption
    assert str(model) not in caption, "a report may be sent to others"
