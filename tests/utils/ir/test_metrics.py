"""utils.ir.metrics against loops written from the definitions, and against pytrec_eval on text ids."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.ir import metrics as metrics_module
from utils.ir.metrics import (
    METRICS,
    Metric,
    MetricChoice,
    always_measured,
    choose_metrics,
    deepest_cutoff,
    mean_metrics,
    metrics_record,
)
from utils.ir.metrics import evaluate as evaluate_to
from utils.ir.metrics import per_query_metrics as per_query_metrics_to
from utils.ir.notation import LARGEST_GRADE, MEASURES, canonical

# Of lists that are long enough for every cut-off.
evaluate = partial(evaluate_to, depth=math.inf)
per_query_metrics = partial(per_query_metrics_to, depth=math.inf)

ALWAYS = always_measured().names(math.inf)
Qrels = dict[int, dict[int, int]]
Rankings = dict[int, list[int]]


def ndcg_at_10(ranking: list[int], judged: dict[int, int]) -> float:
    """Linear gain over log2(rank + 1), as trec_eval has it: no loss for a grade below 0."""
    gained = sum(max(0, judged.get(passage, 0)) / math.log2(rank + 1) for rank, passage in enumerate(ranking[:10], 1))
    ideal = sorted((max(0, grade) for grade in judged.values()), reverse=True)[:10]
    best = sum(relevance / math.log2(rank + 1) for rank, relevance in enumerate(ideal, 1))
    return gained / best if best else 0.0


def mrr_at_10(ranking: list[int], judged: dict[int, int]) -> float:
    """ms_marco_eval.py: the reciprocal of the first relevant rank among the first ten, else 0."""
    for place in range(min(10, len(ranking))):
        if judged.get(ranking[place], 0) >= 1:
            return 1 / (place + 1)
    return 0.0


def map_at_10(ranking: list[int], judged: dict[int, int]) -> float:
    """Precision at each relevant passage of the first ten, over all that are relevant."""
    relevant = {passage for passage, relevance in judged.items() if relevance >= 1}
    hits, total = 0, 0.0
    for rank, passage in enumerate(ranking[:10], 1):
        if passage in relevant:
            hits += 1
            total += hits / rank
    return total / len(relevant) if relevant else 0.0


def recall(ranking: list[int], judged: dict[int, int], cut: int) -> float:
    relevant = {passage for passage, relevance in judged.items() if relevance >= 1}
    return len(relevant & set(ranking[:cut])) / len(relevant) if relevant else 0.0


def hole_rate(ranking: list[int], judged: dict[int, int]) -> float:
    top = ranking[:10]
    return len([passage for passage in top if passage not in judged]) / len(top) if top else 0.0


def by_hand(qrels: Qrels, rankings: Rankings) -> dict[str, float]:
    totals = dict.fromkeys(ALWAYS, 0.0)
    for query, judged in qrels.items():
        ranking = rankings.get(query, [])
        totals["ndcg@10"] += ndcg_at_10(ranking, judged)
        totals["mrr@10"] += mrr_at_10(ranking, judged)
        totals["map@10"] += map_at_10(ranking, judged)
        for cut in (20, 100, 1000):
            totals[f"recall@{cut}"] += recall(ranking, judged, cut)
        totals["hole_rate@10"] += hole_rate(ranking, judged)
    return {name: total / len(qrels) for name, total in totals.items()}


def as_arrays(rankings: Rankings) -> tuple[np.ndarray, np.ndarray]:
    width = max((len(ranking) for ranking in rankings.values()), default=0)
    passages_QK = np.full((len(rankings), width), -1, np.int64)
    for row, ranking in enumerate(rankings.values()):
        passages_QK[row, : len(ranking)] = ranking
    return np.array(list(rankings), np.int64), passages_QK


PASSAGES = st.integers(0, 40)
QUERIES = st.integers(0, 8)
GRADES = st.integers(-2, 4) | st.sampled_from([-LARGEST_GRADE, LARGEST_GRADE])  # -2 is spam in TREC's web tracks
QRELS = st.dictionaries(QUERIES, st.dictionaries(PASSAGES, GRADES, max_size=12), min_size=1)
RANKINGS = st.dictionaries(QUERIES, st.lists(PASSAGES, unique=True, max_size=40))


@settings(max_examples=150, deadline=None)
@given(qrels=QRELS, rankings=RANKINGS, queries_per_block=st.integers(1, 4))
def test_against_the_definitions(qrels: Qrels, rankings: Rankings, queries_per_block: int) -> None:
    """Graded judgements, unanswered queries, queries without qrels, empty and short lists, small blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics_module, "QUERIES_PER_BLOCK", queries_per_block)
        found = evaluate(qrels, *as_arrays(rankings))
    assert [*found] == [*ALWAYS]
    assert found == pytest.approx(by_hand(qrels, rankings), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(qrels=QRELS, rankings=RANKINGS)
def test_against_pytrec_eval_on_text_ids(qrels: Qrels, rankings: Rankings) -> None:
    """Ids as in a TREC run, scores descending with the rank; what it omits counts as zero."""
    judgements = {f"q{query}": {f"D{p}": r for p, r in judged.items()} for query, judged in qrels.items()}
    run = {
        f"q{query}": {f"D{p}": 100.0 - 0.5 * place for place, p in enumerate(ranking)}
        for query, ranking in rankings.items()
    }
    measures = {"ndcg_cut.10", "map_cut.10", "recall.20,100,1000"}
    # Where a query has nothing but grades below 0, pytrec_eval reads memory that is not its own.
    safe = {query: judged for query, judged in judgements.items() if max(judged.values(), default=0) >= 0}
    rows = pytrec_eval.RelevanceEvaluator(safe, measures).evaluate(run)
    found = evaluate(qrels, *as_arrays(rankings))
    names = {"ndcg_cut_10": "ndcg@10", "map_cut_10": "map@10"}
    for theirs in ("ndcg_cut_10", "map_cut_10", "recall_20", "recall_100", "recall_1000"):
        mean = sum(row[theirs] for row in rows.values()) / len(qrels)
        assert found[names.get(theirs, theirs.replace("_", "@"))] == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "theirs"),
    [
        (Metric("ndcg@20", "nDCG@20", "gain of 20", "trec_eval", "nDCG@20"), "ndcg_cut.20"),
        (Metric("p@5", "P@5", "share of 5", "trec_eval", compute=lambda top, of: sum(map(of.get, top)) / 5), "P.5"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_metric_that_is_declared_is_measured(metric: Metric, theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against pytrec_eval, in the rows and in the means."""
    monkeypatch.setitem(METRICS, metric.name, metric)
    rng = np.random.default_rng(3)
    rankings = {query: rng.permutation(40)[:30].tolist() for query in range(6)}
    qrels = {query: {p: int(rng.integers(0, 2)) for p in range(40)} for query in rankings}
    run = {str(query): {str(p): float(-rank) for rank, p in enumerate(found)} for query, found in rankings.items()}
    judged = {str(query): {str(p): grade for p, grade in of.items()} for query, of in qrels.items()}
    rows = pytrec_eval.RelevanceEvaluator(judged, {theirs}).evaluate(run)
    expected = {int(query): values[theirs.replace(".", "_")] for query, values in rows.items()}
    found = per_query_metrics(qrels, *as_arrays(rankings))
    assert {query: row[metric.name] for query, row in found.items()} == pytest.approx(expected)
    assert len(set(expected.values())) > 2
    mean = sum(expected.values()) / len(expected)
    assert evaluate(qrels, *as_arrays(rankings))[metric.name] == pytest.approx(mean)


def test_worked_example() -> None:
    """Two queries, worked on paper."""
    qrels = {3: {10: 2, 11: 1}, 7: {20: 1}}
    found = evaluate(qrels, np.array([3, 7]), np.array([[99, 11, 10], [20, -1, -1]]))
    ndcg = (1 / math.log2(3) + 2 / math.log2(4)) / (2 / math.log2(2) + 1 / math.log2(3))
    expected = {
        "ndcg@10": (ndcg + 1) / 2,
        "mrr@10": (1 / 2 + 1) / 2,
        "map@10": ((1 / 2 + 2 / 3) / 2 + 1) / 2,
        "recall@20": 1.0,
        "recall@100": 1.0,
        "recall@1000": 1.0,
        "hole_rate@10": (1 / 3 + 0) / 2,
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("rank", "expected"), [(1, 1.0), (2, 0.5), (9, 1 / 9), (10, 0.1), (11, 0.0), (20, 0.0)])
def test_mrr_looks_at_ten(rank: int, expected: float) -> None:
    ranking = np.arange(100, 120)
    ranking[rank - 1] = 5
    assert evaluate({0: {5: 1}}, np.array([0]), ranking[None])["mrr@10"] == pytest.approx(expected)


def test_recall_at_a_thousand_and_long_ties_of_names() -> None:
    """Ranks decide, not names: pytrec_eval alone would order equal scores by the passage's name."""
    ranking = np.arange(1500)[::-1].copy()
    judged = dict.fromkeys((1499, 1480, 1479, 1400, 1399, 500, 499, 0), 1)
    found = evaluate({0: judged}, np.array([0]), ranking[None])
    assert [found[f"recall@{cut}"] for cut in (20, 100, 1000)] == [2 / 8, 4 / 8, 6 / 8]


def test_an_unanswered_query_counts_as_zero() -> None:
    qrels = {1: {5: 1}, 2: {6: 1}}
    whole = evaluate({1: qrels[1]}, np.array([1]), np.array([[5]]))
    for queries_Q, passages_QK in (
        (np.array([1]), np.array([[5]])),
        (np.array([1, 2]), np.array([[5], [-1]])),
        (np.array([1, 2]), np.array([[5], [5]])),
    ):
        found = evaluate(qrels, queries_Q, passages_QK)
        for name in ALWAYS[:-1]:
            assert found[name] == whole[name] / 2
    assert evaluate(qrels, np.zeros(0, np.int64), np.zeros((0, 10), np.int64)) == dict.fromkeys(ALWAYS, 0.0)


def test_a_query_without_qrels_is_left_out() -> None:
    queries_Q, passages_QK = np.array([1, 99]), np.array([[5, 6], [5, 6]])
    assert evaluate({1: {6: 1}}, queries_Q, passages_QK) == evaluate({1: {6: 1}}, queries_Q[:1], passages_QK[:1])
    assert list(per_query_metrics({1: {6: 1}}, queries_Q, passages_QK)) == [1]


@pytest.mark.parametrize("name", METRICS)
def test_a_declaration_is_whole(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name and metric.description and metric.source
    assert metric.label.replace(" ", "_").lower() == name and metric.cutoff == int(name.split("@")[1])
    assert str(metric.cutoff) in metric.description


def test_no_qrels_at_all() -> None:
    with pytest.raises(UserError, match="qrels name no query"):
        evaluate({}, np.array([1]), np.array([[5]]))


def test_the_record_of_metrics_json() -> None:
    record = metrics_record({"ndcg@10": 0.5}, 20, "bm25", None, 1.23456)
    assert record == {"metrics": {"ndcg@10": 0.5}, "queries": 20, "model": "bm25", "step": None, "seconds": 1.235}


@settings(max_examples=100, deadline=None)
@given(qrels=QRELS, rankings=RANKINGS, asked=st.integers(1, 60), passages=st.integers(1, 60))
def test_a_cut_off_beyond_what_was_asked_for_is_left_out(
    qrels: Qrels, rankings: Rankings, asked: int, passages: int
) -> None:
    """What is there is what longer lists would have given; lists of the whole collection go to every depth."""
    cut = {query: ranking[:asked] for query, ranking in rankings.items()}
    found = evaluate_to(qrels, *as_arrays(cut), deepest_cutoff(asked, passages))
    expected = {name for name in ALWAYS if asked >= passages or asked >= int(name.split("@")[1])}
    assert set(found) == expected == set(always_measured().names(deepest_cutoff(asked, passages)))
    whole = by_hand(qrels, cut if asked >= passages else rankings)
    assert found == pytest.approx({name: whole[name] for name in found}, abs=1e-9)
    for row in per_query_metrics_to(qrels, *as_arrays(cut), deepest_cutoff(asked, passages)).values():
        assert set(row) == expected


# Measures by name


def by_definition(notation: str, ranking: list[int], judged: dict[int, int]) -> float:
    """A loop from each definition; ``rel`` and ``gains`` are read by hand."""
    name, _, cut = notation.partition("@")
    name, _, argument = name.rstrip(")").partition("(")
    top = ranking[: int(cut)] if cut else ranking
    grades = {passage: max(grade, 0) for passage, grade in judged.items()}
    level = int(argument.removeprefix("rel=")) if argument.startswith("rel=") else 1
    relevant = {passage for passage, grade in grades.items() if grade >= level}
    hits = [rank for rank, passage in enumerate(top, 1) if passage in relevant]
    if name == "nDCG":
        pairs = argument.removeprefix("gains=").strip("{}").split(",") if argument else []
        gains = {int(pair.split(":")[0]): int(pair.split(":")[1]) for pair in pairs}
        gained = {passage: gains.get(grade, grade) for passage, grade in grades.items()}
        best = sorted(gained.values(), reverse=True)[: int(cut) if cut else None]
        ideal = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, 1))
        found = sum(gained.get(passage, 0) / math.log2(rank + 1) for rank, passage in enumerate(top, 1))
        return found / ideal if ideal else 0.0
    if name == "AP":
        precisions = [place / rank for place, rank in enumerate(hits, 1)]
        return sum(precisions) / len(relevant) if relevant else 0.0
    if name == "Judged":
        return sum(passage in judged for passage in top) / len(top) if top else 0.0
    values = {
        "RR": 1 / hits[0] if hits else 0.0,
        "P": len(hits) / int(cut or 1),
        "R": len(hits) / len(relevant) if relevant else 0.0,
        "Success": float(bool(hits)),
    }
    return values[name]


CUTS = st.integers(1, 45)
NOTATIONS = st.one_of(
    st.builds("{}(rel={})@{}".format, st.sampled_from(["RR", "AP", "P", "R", "Success"]), st.integers(1, 4), CUTS),
    st.builds("{}(rel={})".format, st.sampled_from(["RR", "AP"]), st.integers(1, 4)),
    st.builds("nDCG@{}".format, CUTS),
    st.builds("nDCG(gains={{1:{},2:{},3:7}})@{}".format, st.integers(0, 5), st.integers(0, 9), CUTS),
    st.builds("Judged@{}".format, CUTS),
    st.just("nDCG"),
)


@settings(max_examples=200, deadline=None)
@given(qrels=QRELS, rankings=RANKINGS, notations=st.lists(NOTATIONS, min_size=1, max_size=4, unique=True))
def test_measures_by_name_against_the_definitions(qrels: Qrels, rankings: Rankings, notations: list[str]) -> None:
    """Grades of any sign, with several measures at a time, of which none takes over another's arguments."""
    choice = choose_metrics(" ".join(notations), 1, is_of_documents=False)
    rows = per_query_metrics_to(qrels, *as_arrays(rankings), math.inf, choice)
    means = mean_metrics(qrels, rows, math.inf, choice)
    named = {metric.notation: metric.name for metric in choice.metrics}
    for notation in notations:
        name = named[canonical(notation)]
        expected = {
            query: by_definition(notation, ranking, qrels[query])
            for query, ranking in rankings.items()
            if query in qrels
        }
        assert {query: row[name] for query, row in rows.items()} == pytest.approx(expected, abs=1e-9)
        assert means[name] == pytest.approx(sum(expected.values()) / len(qrels), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(qrels=QRELS, rankings=RANKINGS, level=st.integers(1, 4))
def test_a_relevance_level_is_that_of_binary_measures_alone(qrels: Qrels, rankings: Rankings, level: int) -> None:
    """What is below the level counts as judged and irrelevant, gains and holes stay."""
    found = measured(qrels, rankings, "", level)
    binary = {q: {p: int(grade >= level) for p, grade in judged.items()} for q, judged in qrels.items()}
    whole, cut = by_hand(qrels, rankings), by_hand(binary, rankings)
    expected = {name: (whole if name in ("ndcg@10", "hole_rate@10") else cut)[name] for name in ALWAYS}
    assert found == pytest.approx(expected, abs=1e-9)


def measured(
    qrels: Qrels, rankings: Rankings, asked: str, level: int, is_of_documents: bool = False
) -> dict[str, float]:
    choice = choose_metrics(asked, level, is_of_documents)
    rows = per_query_metrics_to(qrels, *as_arrays(rankings), math.inf, choice)
    return mean_metrics(qrels, rows, math.inf, choice)


def test_the_names_of_measures_in_metrics_json() -> None:
    """Ours have their keys, whatever they are asked for by; a grade that is given is not the level's."""
    qrels, rankings = {0: {1: 1, 2: 2}}, {0: [9, 1, 2]}
    found = measured(qrels, rankings, "NDCG@10 RR@10 MRR@10 RR(rel=2)@10 RR(rel=1)@10 RR@100 Success@2", 2)
    assert [*found][: len(ALWAYS)] == [*ALWAYS]
    extra = {name: value for name, value in found.items() if name not in ALWAYS}
    assert extra == pytest.approx({"RR@10": 1 / 2, "mrr@100": 1 / 3, "Success(rel=2)@2": 0.0})
    assert found["mrr@10"] == pytest.approx(1 / 3)


def test_documents_have_mrr_at_100() -> None:
    rankings = {0: [*range(50, 100), 7]}
    assert measured({0: {7: 1}}, rankings, "", 1, is_of_documents=True)["mrr@100"] == pytest.approx(1 / 51)
    assert "mrr@100" not in measured({0: {7: 1}}, rankings, "", 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nDCG@10 foo@3", "'foo@3': measure not found: foo"),
        ("RR(rel=", "'RR(rel=': problem parsing measure"),
        ("R", "'R': it has no cut-off"),
        ("RR@0", "'RR@0': cutoff is 0, expected 1 to 1000000"),
        ("RR@True", "cutoff is True, expected 1 to"),
        ("RR@10.5", "cutoff is 10.5, expected 1 to"),
        ("P(rel=0)@5", "rel is 0, expected 1 to 1000"),
        ("P(rel=[1])@5", "problem parsing measure"),
        ("nDCG(gains=3)@5", "gains are 3, expected whole numbers from 0 to 1000"),
        ("nDCG(gains={1:99999})@5", "gains are {1: 99999}, expected"),
        ("nDCG(dcg='exp-log2')@10", "nDCG takes no dcg here"),
        ("Bpref", "'Bpref': it is none of those measured here"),
        ("RR@10;RR@5", "multiple expressions"),
        ("x" * 300, "it has 300 characters"),
        ("(" * 190, "problem parsing measure"),
        ("__import__('os')", "args must be named"),
    ],
)
def test_a_measure_that_is_none_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        choose_metrics(text, 1, is_of_documents=False)
    message = str(caught.value)
    assert message.startswith("--metrics ") and told in message and "\n" not in message
    assert all(measure.usage in message for measure in MEASURES.values())


def test_every_measure_of_the_table_is_measured() -> None:
    """With its arguments and without; of each what docs/evaluation.md has in its table."""
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    rows = page.partition("<!-- measures: generated -->")[2].partition("<!-- end -->")[0]
    documented = re.findall(r"^\| `([A-Za-z]+)", rows, re.MULTILINE)
    assert documented == [*MEASURES] == ["nDCG", "RR", "AP", "P", "R", "Success", "Judged"]
    for word in MEASURES.values():
        asked = [f"{word.word}@5", *([] if word.needs_cutoff else [word.word])]
        asked += {"rel": [f"{word.word}(rel=2)@5"], "gains": [f"{word.word}(gains={{2:9}})@5"], "": []}[word.argument]
        found = measured({0: {1: 1, 2: 2}, 1: {4: 1}}, {0: [1, 5, 2], 1: [4]}, " ".join(asked), 1)
        assert all(found[canonical(text)] > 0 for text in asked), word


def test_a_cut_off_of_a_named_measure_is_not_beyond_the_lists() -> None:
    choice = choose_metrics("P@3 P@5 AP", 1, is_of_documents=False)
    assert {"P@3", "AP"} <= {*choice.names(4)} and "P@5" not in choice.names(4)
    assert MetricChoice(choice.metrics).names(4) == choice.names(4)
