"""run_eval on several splits at once, graded, with queries that nobody has judged, and on anyone's runs.

Judgements are as TREC's Deep Learning track has them: grades 0 to 3, for a part of the queries. What is measured is
compared with ir_measures' and pytrec_eval's own reading of the run files and of these judgements.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import ir_measures
import numpy as np
import pytest

from data.sources.qrels import qrel_name, query_name
from data.tokens.collection import open_preprocessed
from data.tokens.token_cache import TokenCacheWriter, cache_files
from drivers.evaluate.splits import splits_asked
from model.encoders.static import StaticEncoder
from results.read.evaluation import read_evaluation
from tests.forked import run
from utils.errors import UserError
from utils.exchange.evaluations import read_metrics
from utils.exchange.verify import signature_of

QUERIES = 20  # of the tiny collection's dev split
JUDGED = range(3, QUERIES)  # of test; 3 of them without a positive
DEEP = 100


def add_split(directory: Path, name: str, qrels: list[tuple[int, int, int]] | None) -> None:
    """A split of dev's queries with other judgements, or with none."""
    manifest = json.loads((directory / "manifest.json").read_text())
    for theirs, ours in zip(cache_files(query_name("dev")), cache_files(query_name(name)), strict=True):
        shutil.copy(directory / theirs, directory / ours)
        manifest["files"][ours] = signature_of(directory / ours)
    manifest["counts"][query_name(name)] = QUERIES
    if qrels is not None:
        path = directory / f"{qrel_name(name)}.tsv"
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in qrels))
        manifest["counts"][qrel_name(name)] = len(qrels)
        manifest["files"][path.name] = signature_of(path)
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module", name="base")
def fixture_base(tmp_path_factory: pytest.TempPathFactory, tiny_preprocessed: Path, tiny_tokenizer: Path) -> Path:
    """data/ with the splits test and other (graded) and blind (nobody has judged it), and model/, of random weights."""
    base = tmp_path_factory.mktemp("splits")
    data, model = base / "data", base / "model"
    shutil.copytree(tiny_preprocessed, data)
    rng = np.random.default_rng(11)
    qrels = []
    for query in JUDGED:
        highest = 0 if query in (5, 9, 11) else 3
        passages = sorted(rng.choice(300, 25, replace=False).tolist())
        qrels += [(query, passage, int(rng.integers(0, highest + 1))) for passage in passages]
    add_split(data, "test", qrels)
    add_split(data, "other", [(query, 7 * query, 1 + query % 3) for query in range(QUERIES)])
    add_split(data, "blind", None)
    model.mkdir()
    vocab_size = json.loads((data / "manifest.json").read_text())["vocab_size"]
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 8}).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer / name, model / name)
    return base


def evaluate(base: Path, *flags: str | Path, code: int = 0) -> str:
    lengths = ("--max_seq_length", "32", "--max_query_length", "16")
    return run("drivers.run_eval", "--data_dir", base / "data", *lengths, *flags, code=code)


def model_flags(base: Path) -> tuple[str | Path, ...]:
    return ("--model_type", "static", "--model_name_or_path", base / "model")


def by_ir_measures(base: Path, split: str, path: Path, measures: dict[str, str]) -> dict[str, float]:
    """Of a run file: {key: a measure in the notation}, over all judged queries, in original ids.

    One at a time: next to a measure with gains the library may give these to nDCG@10 as well.
    """
    collection = open_preprocessed(base / "data", 1, 1)
    queries, passages = collection.queries(split).original_ids(), collection.passages.original_ids()
    qrels = {
        queries[query]: {passages[p]: grade for p, grade in judged.items()}
        for query, judged in collection.qrels(split).as_dict().items()
    }
    scores: dict[str, dict[str, float]] = {}
    for found in ir_measures.read_trec_run(str(path)):
        scores.setdefault(found.query_id, {})[found.doc_id] = found.score
    parsed = {key: ir_measures.parse_measure(text) for key, text in measures.items()}
    return {key: float(measure.calc_aggregate(qrels, scores)) for key, measure in parsed.items()}


LEVEL_2 = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "RR(rel=2)@10",
    "map@10": "AP(rel=2)@10",
    "recall@20": "R(rel=2)@20",
    "recall@100": "R(rel=2)@100",
    "RR@10": "RR@10",
    "P(rel=2)@5": "P(rel=2)@5",
    "nDCG(gains={2:3,3:7})@10": "nDCG(gains={2:3,3:7})@10",
    "AP": "AP(rel=1)",
}
ASKED = "nDCG@10 RR(rel=1)@10 P@5 nDCG(gains={2:3,3:7})@10 AP(rel=1)"


def scores_of(path: Path) -> list[float]:
    return [float(line.split(" ")[4]) for line in path.read_text().splitlines()]


def test_several_splits_in_one_search(base: Path, tmp_path: Path) -> None:
    """Each is what it is alone; queries that nobody has judged are in the run, and in no mean."""
    flags = (*model_flags(base), "--topk", str(DEEP), "--relevance_level", "2", "--metrics", ASKED)
    said = evaluate(base, *flags, "--split", "test", "other", "blind", "--output_dir", tmp_path / "all")
    record = read_metrics(tmp_path / "all" / "metrics.json")
    assert [*record["splits"]] == ["test", "other", "blind"] and record["split"] == "test"
    assert (record["relevance_level"], record["queries"]) == (2, len(JUDGED))
    assert record["metrics"] == record["splits"]["test"]["metrics"]
    for split in ("test", "other"):
        path = tmp_path / "all" / f"{split}.trec"
        expected = by_ir_measures(base, split, path, LEVEL_2)
        found = record["splits"][split]["metrics"]
        assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-9)
        assert {*found} == {*expected, "hole_rate@10"}
        queries = {line.split(" ")[0] for line in path.read_text().splitlines()}
        assert len(queries) == QUERIES
    blind = record["splits"]["blind"]
    assert (blind["metrics"], blind["queries"], blind["pooled"]) == ({}, 0, {})
    # Some passages are the same tokens more than once: equal means, whose products may differ in the last bit.
    runs = [scores_of(tmp_path / "all" / f"{split}.trec") for split in ("test", "other", "blind")]
    for run_of_split in runs[1:]:
        assert run_of_split == pytest.approx(runs[0], abs=1e-4), "they have the same queries"
    assert (tmp_path / "all" / "blind.per_query.tsv").read_text() == "query_id\n"
    assert (
        "test: 20 queries are ranked; 3 of them are not judged, and in no mean; 3 of 17 judged queries have no" in said
    )
    assert "blind: 20 queries are ranked; 20 of them are not judged, and in no mean" in said
    assert "full ranking blind: no metric: nobody has judged this split" in said and "every cut-off" not in said
    evaluate(base, *flags, "--split", "test", "--output_dir", tmp_path / "one")
    alone = read_metrics(tmp_path / "one" / "metrics.json")
    found, expected = alone["splits"]["test"], record["splits"]["test"]
    for values in ("metrics", "pooled"):
        assert found.pop(values) == pytest.approx(expected[values], abs=0.01), values
    assert {values: expected[values] for values in found} == found and [*alone["splits"]] == ["test"]
    check_holes(base, record["splits"]["test"]["pooled"], tmp_path / "all" / "test.trec")


def test_each_split_has_the_level_that_its_source_says(base: Path, tmp_path: Path) -> None:
    """Of one call: TREC's passages are relevant from grade 2, dev from 1; the flag decides for all of them."""
    data, given = tmp_path / "data", tmp_path / "given.trec"
    shutil.copytree(base / "data", data)
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**manifest, "relevance_levels": {"test": 2}}))
    collection = open_preprocessed(data, 1, 1)
    query_ids, passage_ids = collection.queries("dev").original_ids(), collection.passages.original_ids()
    rng = np.random.default_rng(3)
    with given.open("w") as file:
        for query in query_ids:
            ranked = rng.permutation(passage_ids).tolist()
            file.writelines(f"{query} Q0 {passage} 1 {-rank} t\n" for rank, passage in enumerate(ranked))
    names = ("test", "dev", "other", "blind")
    at_2 = {key: LEVEL_2[key] for key in ("ndcg@10", "mrr@10", "map@10", "recall@20", "recall@100")}
    measures = {1: {key: text.replace("(rel=2)", "") for key, text in at_2.items()}, 2: at_2}
    asked = ("--data_dir", data, "--run", given, "--split", *names)
    for flags, levels in {(): (2, 1, 1, 1), ("--relevance_level", "1"): (1, 1, 1, 1)}.items():
        out = tmp_path / str(len(flags))
        said = run("drivers.run_eval", *asked, *flags, "--output_dir", out)
        record = read_metrics(out / "given" / "metrics.json")
        for name, level in zip(names, levels, strict=True):
            found = record["splits"][name]
            assert found["relevance_level"] == level
            assert read_evaluation(out / "given" / "metrics.json", "", name).relevance_level == level
            if name == "blind":
                assert found["metrics"] == {}
                continue
            assert f"{name}: 20 queries are ranked; " in said and f"; relevant is grade {level} and above" in said
            expected = by_ir_measures(base, name, given, measures[level])
            assert {key: found["metrics"][key] for key in expected} == pytest.approx(expected, abs=1e-9)
        assert record["relevance_level"] == levels[0]


def check_holes(base: Path, pooled: dict[str, float], path: Path) -> None:
    """Over all passages returned for judged queries together, as ANCE's notebook counts."""
    collection = open_preprocessed(base / "data", 1, 1)
    queries, passages = collection.queries("test").original_ids(), collection.passages.original_ids()
    judged = {(queries[q], passages[p]) for q, row in collection.qrels("test").as_dict().items() for p in row}
    with_qrels = {query for query, _ in judged}
    rows = [line.split(" ") for line in path.read_text().splitlines()]
    for name, cut in (("hole_rate@10", 10), ("hole_rate", DEEP)):
        pool = [(query, passage) for query, _, passage, rank, *_ in rows if query in with_qrels and int(rank) <= cut]
        assert pooled[name] == pytest.approx(sum(pair not in judged for pair in pool) / len(pool))


def test_the_default_split_is_dev(base: Path, tmp_path: Path) -> None:
    evaluate(base, *model_flags(base), "--topk", "10", "--output_dir", tmp_path)
    assert read_metrics(tmp_path / "metrics.json")["split"] == "dev"


def test_without_a_judged_split_one_is_to_be_named(base: Path) -> None:
    """In the words of this program's flags; one that is named needs no judgements."""
    collection = open_preprocessed(base / "data", 1, 1)
    counts = {name: count for name, count in collection.manifest["counts"].items() if "qrel" not in name}
    unjudged = replace(collection, manifest={**collection.manifest, "counts": counts})
    with pytest.raises(UserError, match=r"no split other than train with qrels, .*name those to rank by --split$"):
        splits_asked(unjudged, None)
    assert [split.name for split in splits_asked(unjudged, ["dev"])] == ["dev"]


def test_a_run_without_a_model_is_what_the_model_s_evaluation_is(base: Path, tmp_path: Path) -> None:
    """TREC's six columns and MS MARCO's three, two files at once; compared with another run."""
    flags = ("--relevance_level", "2", "--metrics", ASKED, "--split", "test", "other")
    evaluate(base, *model_flags(base), *flags, "--topk", str(DEEP), "--output_dir", tmp_path / "model")
    given = tmp_path / "model" / "test.trec"
    three = tmp_path / "three.rank.tsv"
    rows = [line.split(" ") for line in given.read_text().splitlines()]
    three.write_text("".join(f"{query}\t{passage}\t{rank}\n" for query, _, passage, rank, *_ in rows))
    said = evaluate(
        base,
        "--run",
        given,
        three,
        *flags,
        "--output_dir",
        tmp_path / "runs",
        "--overlap_run",
        tmp_path / "model/other.trec",
    )
    theirs = read_metrics(tmp_path / "model" / "metrics.json")
    for name, path in {"test": given, "three.rank": three}.items():
        record = read_metrics(tmp_path / "runs" / name / "metrics.json")
        assert record["metrics"] == pytest.approx(theirs["metrics"], abs=1e-12)
        assert (record["queries"], record["model"], record["step"]) == (len(JUDGED), str(path), None)
        assert record["splits"]["other"]["metrics"] == pytest.approx(theirs["splits"]["other"]["metrics"], abs=1e-12)
        assert record["pooled"] == pytest.approx(
            {**theirs["pooled"], "overlap@100": 1.0, "overlap_queries": len(JUDGED)}
        )
        own, other = (tmp_path / place / "test.per_query.tsv" for place in (f"runs/{name}", "model"))
        assert own.read_bytes() == other.read_bytes()
    assert "lists for 20 of 20 queries" in said and "devices cpu" in said


def test_lists_of_a_run_are_cut_at_topk(base: Path, tmp_path: Path) -> None:
    """As if the file had no more lines: what is deeper is not measured, and the log says of how many lists."""
    collection = open_preprocessed(base / "data", 1, 1)
    query_ids, passage_ids = collection.queries("test").original_ids(), collection.passages.original_ids()
    rng, whole, cut = np.random.default_rng(7), tmp_path / "whole.trec", tmp_path / "cut.trec"
    with whole.open("w") as long, cut.open("w") as short:
        for number, query in enumerate(query_ids):
            ranked = rng.permutation(passage_ids)[: 15 if number < 4 else 60].tolist()
            lines = [f"{query} Q0 {passage} {rank} {-rank} t\n" for rank, passage in enumerate(ranked)]
            long.writelines(lines)
            short.writelines(lines[:25])
    flags = ("--split", "test", "--metrics", "AP nDCG@50 R@25", "--overlap_run", cut)
    said = evaluate(base, "--run", whole, *flags, "--topk", "25", "--output_dir", tmp_path / "a", "--nprobe", "3")
    assert "lists for 20 of 20 queries; 16 of them are longer than 25, the first 25 passages are measured (--to" in said
    (warning,) = [line for line in said.splitlines() if "without effect on --run" in line]
    assert {*warning.rpartition(": ")[2].split(", ")} == {"--max_seq_length", "--max_query_length", "--nprobe"}
    evaluate(base, "--run", cut, *flags, "--output_dir", tmp_path / "b")
    found, expected = (
        read_metrics(tmp_path / place / "metrics.json")["splits"]["test"] for place in ("a/whole", "b/cut")
    )
    assert found == expected and {"AP", "R@25", "recall@20"} <= {*found["metrics"]}
    assert not {"nDCG@50", "recall@100"} & {*found["metrics"]}
    evaluate(base, "--run", whole, *flags, "--output_dir", tmp_path / "c")
    longer = read_metrics(tmp_path / "c" / "whole" / "metrics.json")["metrics"]
    assert "nDCG@50" in longer and longer["AP"] > found["metrics"]["AP"], "all of the list without --topk"


def test_the_overlap_with_bm25(base: Path, tmp_path: Path) -> None:
    """Of a model's evaluation: the share of what both return, of the queries that the other run has."""
    collection = open_preprocessed(base / "data", 1, 1)
    query_ids, passage_ids = collection.queries("dev").original_ids(), collection.passages.original_ids()
    rng, lists = np.random.default_rng(2), {}
    with (tmp_path / "bm25.trec").open("w") as file:
        for query in query_ids[3:]:
            lists[query] = rng.choice(passage_ids, 30, replace=False).tolist()
            file.writelines(f"{query} Q0 {p} {rank} {-rank} bm25\n" for rank, p in enumerate(lists[query], 1))
    flags = (*model_flags(base), "--topk", "40", "--overlap_run", tmp_path / "bm25.trec")
    evaluate(base, *flags, "--output_dir", tmp_path / "out")
    rows = [line.split(" ") for line in (tmp_path / "out" / "dev.trec").read_text().splitlines()]
    both = [passage in lists[query] for query, _, passage, *_ in rows if query in lists]
    pooled = read_metrics(tmp_path / "out" / "metrics.json")["pooled"]
    assert pooled["overlap@100"] == pytest.approx(sum(both) / len(both)) and pooled["overlap_queries"] == len(lists)


def test_a_passage_that_is_its_own_query(base: Path, tmp_path: Path) -> None:
    """It is in no list, the one below moves up, and lists are as long as without it."""
    data = tmp_path / "data"
    shutil.copytree(base / "data", data)
    evaluate(base, *model_flags(base), "--topk", "21", "--output_dir", tmp_path / "before")
    before: dict[str, list[str]] = {}
    for line in (tmp_path / "before" / "dev.trec").read_text().splitlines():
        before.setdefault(line.split(" ")[0], []).append(line.split(" ")[2])
    collection = open_preprocessed(data, 1, 1)
    queries, passages = collection.queries("dev").original_ids(), collection.passages.original_ids()
    own = {
        0: before[queries[0]][0],
        4: before[queries[4]][9],
        7: next(p for p in passages if p not in before[queries[7]]),
    }
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["own_passages"] = {"dev": [[query, passages.index(passage)] for query, passage in own.items()]}
    (data / "manifest.json").write_text(json.dumps(manifest))
    flags = ("--max_seq_length", "32", "--max_query_length", "16", "--topk", "20", "--output_dir", tmp_path / "after")
    said = run("drivers.run_eval", "--data_dir", data, *model_flags(base), *flags)
    after: dict[str, list[str]] = {}
    for line in (tmp_path / "after" / "dev.trec").read_text().splitlines():
        after.setdefault(line.split(" ")[0], []).append(line.split(" ")[2])
    for number, query in enumerate(queries):
        assert after[query] == [passage for passage in before[query] if passage != own.get(number)][:20]
    assert "3 are a passage themselves, which is in no list of theirs" in said
    run(
        "drivers.run_eval",
        "--data_dir",
        data,
        "--run",
        tmp_path / "before" / "dev.trec",
        "--output_dir",
        tmp_path / "runs",
    )
    given, ranked = (read_metrics(tmp_path / place / "metrics.json")["metrics"] for place in ("runs/dev", "after"))
    assert given == pytest.approx(ranked)


@pytest.fixture(name="places")
def fixture_places(base: Path, tmp_path: Path) -> Path:
    """A collection in which the ids of dev and test are places in a file, as DPR's; test's queries in another order."""
    data = tmp_path / "places"
    shutil.copytree(base / "data", data)
    collection = open_preprocessed(data, 16, 16)
    cache, vocab_size = collection.queries("dev"), collection.manifest["vocab_size"]
    for split, rows in {"dev": range(QUERIES), "test": range(QUERIES - 1, -1, -1)}.items():
        texts = [cache.tokens[cache.offsets_N1[row] : cache.offsets_N1[row + 1]].tolist() for row in rows]
        with TokenCacheWriter(tmp_path, query_name(split), vocab_size) as writer:
            writer.append([str(place) for place in range(QUERIES)], texts)
    manifest = json.loads((data / "manifest.json").read_text())
    for file in (*cache_files(query_name("dev")), *cache_files(query_name("test"))):
        (tmp_path / file).replace(data / file)
        manifest["files"][file] = signature_of(data / file)
    (data / "manifest.json").write_text(json.dumps(manifest))
    return data


@pytest.mark.parametrize("flag", ["--run", "--rerank_file", "--overlap_run"])
def test_one_file_is_not_of_splits_with_the_same_ids_for_other_queries(
    base: Path, places: Path, tmp_path: Path, flag: str
) -> None:
    given, out = tmp_path / "given.trec", tmp_path / "out"
    passage_ids = open_preprocessed(places, 1, 1).passages.original_ids()
    lines = [f"{query} Q0 {passage_ids[query]} 1 2.5 t\n" for query in range(QUERIES)]
    given.write_text("".join(lines))
    lengths = ("--max_seq_length", "32", "--max_query_length", "16")
    model = () if flag == "--run" else (*model_flags(base), *lengths, "--topk", "5")
    asked = ("--data_dir", places, *model, "--output_dir", out)
    said = run("drivers.run_eval", *asked, flag, given, "--split", "dev", "test", "--dry_run", code=2)
    told = "one run cannot be of dev and test, whose ids are the same for other queries (the first is 0): evaluate one"
    assert told in said and len(said.strip().splitlines()) == 1 and not out.exists()
    run("drivers.run_eval", *asked, flag, given, "--split", "test")
    if model:
        run("drivers.run_eval", *asked, "--split", "dev", "test")  # a search has lists of its own for each


def refusals(base: Path, tmp_path: Path) -> dict[str, tuple[tuple[str | Path, ...], str]]:
    bad = tmp_path / "bad.trec"
    bad.write_text("q60 Q0 p3 1 high t\n")
    good = tmp_path / "good.trec"
    good.write_text("q60 Q0 p3 1 2.5 t\n")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "good.trec").write_text("q60 Q0 p3 1 2.5 t\n")
    model = model_flags(base)
    return {
        "a bad line": (("--run", bad), f"{bad}, line 1: the score is 'high', expected a number"),
        "no run": (("--run", tmp_path / "none.trec"), "none.trec is missing, expected a run"),
        "a run and a model": (("--run", good, *model), "--run is given with --model_name_or_path, expected a run or"),
        "two of a name": (("--run", good, tmp_path / "there/good.trec"), "--run has two files of one name"),
        "neither": ((), "--model_type is missing, expected one of"),
        "no split": (
            (*model, "--split", "dev", "tset"),
            "has no split tset, expected one of train, dev, test, other, blind",
        ),
        "a measure": (
            (*model, "--metrics", "nDCG@10 foo@3"),
            "--metrics 'foo@3': measure not found: foo; expected some",
        ),
        "a run's measure": (("--run", good, "--metrics", "R"), "--metrics 'R': it has no cut-off"),
        "a level": (("--run", good, "--relevance_level", "3", "--split", "dev"), "the highest grade of dev is 1"),
        "a level of one of two": (
            ("--run", good, "--relevance_level", "2", "--split", "test", "dev"),
            "of dev is 1: nothing would be relevant; evaluate dev by itself with a lower --relevance_level",
        ),
    }


@pytest.mark.parametrize("case", range(10))
def test_what_is_refused_in_one_line(base: Path, tmp_path: Path, case: int) -> None:
    flags, told = [*refusals(base, tmp_path).values()][case]
    said = evaluate(base, *flags, "--output_dir", tmp_path / "out", code=2)
    errors = [line for line in said.splitlines() if line.startswith("error: ") or ": error: " in line]
    assert len(errors) == 1 and told in errors[0]
    assert not (tmp_path / "out").exists()


def test_documents_have_mrr_at_100_and_passages_at_10_alone(base: Path, tmp_path: Path) -> None:
    """MS MARCO's documents are measured at 100: of the same lists, whose first relevant one is below rank 10."""
    collection = open_preprocessed(base / "data", 1, 1)
    query_ids, passage_ids = collection.queries("other").original_ids(), collection.passages.original_ids()
    first = {query: 5 + 4 * query for query in range(QUERIES)}  # the rank of the query's one relevant passage
    with (tmp_path / "given.tsv").open("w") as file:
        for query, rank in first.items():
            others = [passage for place, passage in enumerate(passage_ids) if place != 7 * query][:99]
            ranked = [*others[: rank - 1], passage_ids[7 * query], *others[rank - 1 :]]
            file.writelines(f"{query_ids[query]}\t{name}\t{place}\n" for place, name in enumerate(ranked, 1))
    given = ("--run", tmp_path / "given.tsv", "--split", "other")
    evaluate(base, *given, "--output_dir", tmp_path / "passages")
    data = tmp_path / "data"
    shutil.copytree(base / "data", data)
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**manifest, "data_type": 0}))
    run("drivers.run_eval", "--data_dir", data, *given, "--output_dir", tmp_path / "documents")
    passages, documents = (
        read_metrics(tmp_path / kind / "given" / "metrics.json")["metrics"] for kind in ("passages", "documents")
    )
    assert "mrr@100" not in passages and documents.items() >= passages.items()
    assert documents["mrr@100"] == pytest.approx(sum(1 / rank for rank in first.values()) / QUERIES)
    assert documents["mrr@10"] == pytest.approx((1 / 5 + 1 / 9) / QUERIES)
