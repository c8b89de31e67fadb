"""The whole loop as its users run it: processes that meet in a directory, with a tiny RoBERTa and a static encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from data.mining.negative_lists import NegativeLists, is_positive, read_negative_lists
from data.tokens.collection import open_preprocessed
from data.tokens.tokenizer import load_tokenizer
from model.encoders.registry import load_encoder
from model.encoders.static import StaticEncoder
from results.read.logged import by_rank_of, read_logged, read_measures
from results.read.run import read_arm
from results.read.seen import read_seen
from tests.drivers.models import config_of_random_roberta
from tests.exchanging import read_beat
from tests.forked import TIMEOUT_SECONDS, run, start
from tests.texts import token_batch
from utils.exchange import atomic
from utils.exchange.layout import METRICS, JobLayout
from utils.exchange.lease.record import LeaseTimeouts
from utils.exchange.markers import read_done, working
from utils.exchange.negatives import next_refresh_number, read_records, read_refresh
from utils.exchange.verify import signature_of
from utils.exchange.wait import wait_for

LENGTHS = ("--max_seq_length", "32", "--max_query_length", "16")
STEPS, WINDOW = 30, 10
LOCKSTEP = ("--refresh_mode", "lockstep", "--steps_per_refresh", str(WINDOW), "--refresh_lag", "1")

pytestmark = pytest.mark.slow


def launched(program: str, processes: int) -> tuple[str, ...]:
    """``program`` by torchrun where there are several processes, which then are interpreters started for it."""
    if processes == 1:
        return (program,)
    return ("torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", program)


def train_and_generate(
    arm: Path,
    data_dir: Path,
    warmup: Path,
    model_type: str,
    strategy: str = "top",
    clock: Sequence[str] = LOCKSTEP,
    processes: int = 1,
) -> tuple[str, str]:
    """Trainer and generator at once, as one arm; their outputs."""
    arm.mkdir(parents=True)
    common = ("--data_dir", data_dir, "--model_type", model_type, *LENGTHS, *clock)
    generator_flags = (
        "--training_dir",
        arm / "checkpoints",
        "--init_model_dir",
        warmup,
        "--output_dir",
        arm / "ann_data",
    )
    selection = ("--topk_training", "50", "--negative_sample", "5", "--ann_chunk_factor", "2")
    trainer_flags = ("--ann_dir", arm / "ann_data", "--output_dir", arm / "checkpoints", "--model_name_or_path", warmup)
    steps = ("--max_steps", str(STEPS), "--save_steps", "10", "--logging_steps", "5")
    learning = ("--learning_rate", "1e-3", "--optimizer", "lamb", "--single_warmup", "--group_size", "1")
    batch = ("--per_gpu_train_batch_size", str(16 // processes))
    programs = {
        "generator": (
            *launched("drivers.run_ann_data_gen", processes), *common, *generator_flags, *selection,
            "--negative_strategy", strategy,
        ),
        "trainer": (
            *launched("drivers.run_ann", processes), *common, *trainer_flags, *steps, *learning, *batch,
        ),
    }  # fmt: skip
    logs = {name: arm / f"{name}.out" for name in programs}
    running = {name: start(logs[name], *words) for name, words in programs.items()}
    try:
        codes = {name: program.wait(TIMEOUT_SECONDS) for name, program in running.items()}
    finally:
        for program in running.values():
            program.end()
    texts = {name: log.read_text() for name, log in logs.items()}
    assert codes == {"generator": 0, "trainer": 0}, "\n".join(text[-3000:] for text in texts.values())
    return texts["trainer"], texts["generator"]


@pytest.fixture(scope="module")
def bm25(shared_collection: Path, tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bm25")
    flags = ("--raw_data_dir", shared_collection, "--data_dir", tiny_preprocessed, "--output_dir", directory)
    run("drivers.run_bm25", *flags, "--topk_training", "50", "--negative_sample", "5")
    return directory


@pytest.fixture(scope="module")
def tiny_roberta(tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain RoBERTa of two layers with random weights, as a hub would give it: without ANCE's head."""
    from transformers import RobertaModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = config_of_random_roberta(tiny_preprocessed, **sizes, **no_dropout)
    directory = tmp_path_factory.mktemp("roberta")
    RobertaModel(config).save_pretrained(directory)
    return directory


def warm_up(directory: Path, data_dir: Path, bm25_dir: Path, tokenizer: Path, *model: str | Path) -> Path:
    steps = ("--max_steps", "40", "--save_steps", "40", "--logging_steps", "20", "--logging_steps_per_eval", "1")
    learning = ("--learning_rate", "3e-3", "--optimizer", "adamW", "--per_gpu_train_batch_size", "16")
    output = run(
        "drivers.run_warmup", "--do_train", "--evaluate_during_training", "--data_dir", data_dir,
        "--bm25_dir", bm25_dir, "--tokenizer_name", tokenizer, "--output_dir", directory,
        *LENGTHS, *steps, *learning, *model,
    )  # fmt: skip
    assert output.count("Reranking/Full ranking mrr: ") == 2
    return JobLayout(directory).checkpoint(40)


@pytest.fixture(scope="module")
def static_warmup(
    tiny_preprocessed: Path, bm25: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("static")
    config = directory / "config.json"
    config.write_text(json.dumps({"model_type": "static", "embedding_size": 32}))
    model = ("--train_model_type", "static", "--config_name", config, "--score_scale", "0.2", "--loss", "in_batch")
    return warm_up(directory / "warmup", tiny_preprocessed, bm25, tiny_tokenizer, *model)


def published_lists(ann_dir: Path, data_dir: Path) -> dict[int, NegativeLists]:
    """All refreshes, checked against the qrels: no known positive is a negative, nothing is repeated."""
    positives = open_preprocessed(data_dir, 32, 16).qrels("train").positives()
    found = {}
    for record in read_records(ann_dir):
        refresh = read_refresh(ann_dir, record["refresh"])
        lists = read_negative_lists(refresh.path)
        assert refresh.step == refresh.number * WINDOW
        assert not is_positive(lists.query_Q[:, None], lists.negative_QN, positives).any()
        assert all(len(set(row)) == len(row) for row in lists.negative_QN.tolist())
        assert is_positive(lists.query_Q, lists.positive_Q, positives).all()
        found[refresh.number] = lists
    return found


def test_roberta_end_to_end_with_equal_negatives_from_one_process_and_two(
    tiny_preprocessed: Path, bm25: Path, tiny_tokenizer: Path, tiny_roberta: Path, tmp_path: Path
) -> None:
    model = ("--train_model_type", "rdot_nll", "--model_name_or_path", tiny_roberta)
    warmup = warm_up(tmp_path / "warmup", tiny_preprocessed, bm25, tiny_tokenizer, *model)
    found, noted = {}, {}
    for processes in (1, 2):
        arm = tmp_path / f"arm{processes}"
        trainer, generator = train_and_generate(arm, tiny_preprocessed, warmup, "rdot_nll", processes=processes)
        assert trainer.rstrip().splitlines()[-1].startswith(f"finished step={STEPS} ")
        assert "\r" not in trainer + generator
        done = read_done(arm / "checkpoints")
        assert done is not None and done["step"] == STEPS and done["refreshes"] == 2
        noted[processes] = read_seen(arm / "checkpoints")
        found[processes] = published_lists(arm / "ann_data", tiny_preprocessed)
    assert sorted(found[1]) == sorted(found[2]) == [0, 1]  # refresh 2 would serve no step
    assert noted[1] == noted[2] and [(s.refresh, s.triples) for s in noted[1]] == [(0, 20 * 16), (1, 10 * 16)]
    for number, one in found[1].items():
        two = found[2][number]
        for name in ("query_Q", "positive_Q", "rank_QN"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=f"{name} of refresh {number}")
        # Two processes sum gradients in another order, by which passages of nearly one score may change places.
        np.testing.assert_allclose(one.score_QN, two.score_QN, rtol=1e-4)
        assert (one.negative_QN != two.negative_QN).mean() <= 0.05 * number, f"negatives of refresh {number}"
    arm = tmp_path / "arm2"
    flags = ("--data_dir", tiny_preprocessed, "--model_type", "rdot_nll", *LENGTHS, "--topk", "20")
    final = JobLayout(arm / "checkpoints").checkpoint(STEPS)
    compared = ("--model_name_or_path", final, "--output_dir", arm / "eval", "--ann_dir")
    assert "has no refresh 1, which " in run("drivers.run_eval", *flags, *compared, arm / "checkpoints", code=2)
    run("drivers.run_eval", *flags, *compared, arm / "ann_data")
    check_measures(arm, tiny_preprocessed, found[2][1])


def check_measures(arm: Path, data_dir: Path, last: NegativeLists) -> None:
    """What reports read is what the programs of the arm, of two processes each, have written."""
    collection = open_preprocessed(data_dir, 32, 16)
    measures = read_measures(read_arm(arm))
    assert [*measures.layers] == ["embeddings", "layer_0", "layer_1", "head"]
    assert [step for step, _ in measures.losses] == list(range(5, STEPS + 1, 5))
    assert sum(values["triples"] for values in measures.by_rank.values()) == STEPS * 16
    assert measures.processes == 2 and [refresh.processes for refresh in measures.refreshes] == [2, 2]
    assert measures.process_hours(1.0) is not None
    # Refresh 0 serves steps 1 to 20, refresh 1 (of step 10) the last ten.
    assert measures.ages == (pytest.approx((sum(range(20)) + sum(range(10, 20))) / STEPS), 19)
    assert [refresh.searched for refresh in measures.refreshes] == [len(last.query_Q)] * 2
    rows = [line.split() for line in (arm / "eval" / "dev.trec").read_text().splitlines()]
    returned = measures.returned
    assert returned is not None and sum(returned.by_grade["retrieved"].values()) == len(rows)
    scores_K = [np.mean([float(row[4]) for row in rows if row[3] == str(rank)]) for rank in (1, 20)]
    assert returned.curve_K[0] - returned.curve_K[19] == pytest.approx(scores_K[0] - scores_K[1], abs=1e-4)
    of_id = {passage_id: row for row, passage_id in enumerate(collection.passages.original_ids())}
    found = [of_id[row[2]] for row in rows if int(row[3]) <= 10]
    trained = last.negative_QN[last.negative_QN >= 0].tolist()
    overlap = sum(min(found.count(p) / len(found), trained.count(p) / len(trained)) for p in of_id.values())
    assert returned.trained_on["at_10"] == pytest.approx(overlap) and "at_100" not in returned.trained_on
    assert returned.trained_on["refresh"] == 1


def test_strategies_give_pairwise_different_negatives_and_a_run_can_be_repeated(
    tiny_preprocessed: Path, static_warmup: Path, tmp_path: Path
) -> None:
    arms = {}
    for name, strategy in (("top", "top"), ("again", "top"), ("bottom", "bottom"), ("random", "random")):
        train_and_generate(tmp_path / name, tiny_preprocessed, static_warmup, "static", strategy=strategy)
        arms[name] = published_lists(tmp_path / name / "ann_data", tiny_preprocessed)
    final = {name: JobLayout(tmp_path / name / "checkpoints").checkpoint(STEPS) for name in arms}
    weights = {name: atomic.sha256_of(path / "model.safetensors") for name, path in final.items()}
    assert weights["top"] == weights["again"], "lockstep with one seed must repeat exactly"
    assert len({weights[name] for name in ("top", "bottom", "random")}) == 3
    for number in arms["top"]:
        np.testing.assert_array_equal(arms["top"][number].negative_QN, arms["again"][number].negative_QN)
        for other in ("bottom", "random"):
            assert not np.array_equal(arms["top"][number].negative_QN, arms[other][number].negative_QN)
        assert (arms["bottom"][number].rank_QN.min(1) > arms["top"][number].rank_QN.max(1)).all()
    for name in ("top", "bottom"):
        check_published(final[name], name)


def check_published(checkpoint: Path, strategy: str) -> None:
    """Its manifest covers all of it, its README.md tells the run, and sentence-transformers opens it as it is."""
    from sentence_transformers import SentenceTransformer

    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    files = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "MANIFEST.json"} and "2_Dense/model.safetensors" in files
    card = (checkpoint / "README.md").read_text()
    for said in (f"| negatives | {strategy} |", f"| step | {STEPS} |", f"| run | {manifest['run_id']} |"):
        assert said in card
    assert f"| collection | {manifest['collection_fingerprint']} |" in card
    texts = ["ba de fi", "no such words " * 20]
    ids = load_tokenizer(checkpoint)(texts, truncation=True, max_length=16)["input_ids"]
    with torch.no_grad():
        expected = load_encoder("static", str(checkpoint)).eval().encode(token_batch(ids), "query").rows.numpy()
    found = SentenceTransformer(str(checkpoint), device="cpu").encode_query(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_async_takes_newer_negatives_and_the_generator_ends_with_the_trainer(
    tiny_preprocessed: Path, static_warmup: Path, tmp_path: Path
) -> None:
    clock = ("--refresh_mode", "async")
    trainer, generator = train_and_generate(tmp_path / "arm", tiny_preprocessed, static_warmup, "static", clock=clock)
    assert "dev_ndcg" in trainer
    assert generator.rstrip().splitlines()[-1].startswith("finished refreshes=")


def with_queries_without_a_positive(preprocessed: Path, copy: Path) -> Path:
    """Dev's first query is not judged, and nothing is relevant to the third."""
    shutil.copytree(preprocessed, copy)
    manifest, path = json.loads((copy / "manifest.json").read_text()), copy / "dev-qrel.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    kept = [(query, passage, "0" if query == "2" else grade) for query, passage, grade in rows if query != "0"]
    path.write_text("".join("\t".join(row) + "\n" for row in kept))
    manifest["files"][path.name] = signature_of(path)
    manifest["counts"]["dev-qrel"] = len(kept)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_embeddings_on_disk_give_the_same_negatives_and_the_same_evaluation(
    tiny_preprocessed: Path, static_warmup: Path, tmp_path: Path
) -> None:
    """Also of dev queries that the refresh does not measure: nobody has judged them, or nothing is relevant."""
    data = with_queries_without_a_positive(tiny_preprocessed, tmp_path / "data")
    common = (
        "--data_dir", data, "--training_dir", tmp_path / "none", "--init_model_dir", static_warmup,
        "--model_type", "static", *LENGTHS, "--topk_training", "50", "--negative_sample", "5",
    )  # fmt: skip
    direct, stored = tmp_path / "direct", tmp_path / "stored"
    run("drivers.run_ann_data_gen", *common, "--output_dir", direct, "--end_output_num", "0")
    run("drivers.run_ann_data_gen", *common, "--output_dir", stored, "--inference")
    assert next_refresh_number(stored) == 0
    run("drivers.run_ann_data_gen", *common, "--output_dir", stored, "--load_gen", "true", processes=2)
    assert JobLayout(direct).negatives(0).read_bytes() == JobLayout(stored).negatives(0).read_bytes()
    eval_flags = ("--data_dir", data, "--model_type", "static", *LENGTHS)
    run("drivers.run_eval", *eval_flags, "--model_name_or_path", static_warmup, "--output_dir", tmp_path / "a")
    (embeddings,) = (stored / "embeddings").glob("step-0-*")
    run("drivers.run_eval", *eval_flags, "--embedding_dir", embeddings, "--output_dir", tmp_path / "b")
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text())["metrics"] for name in "ab"]
    assert metrics[0] == metrics[1]
    for name in ("dev.trec", "dev.per_query.tsv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    lines = [line.split("\t") for line in (tmp_path / "a" / "dev.per_query.tsv").read_text().splitlines()]
    query_ids = open_preprocessed(data, 32, 16).queries("dev").original_ids()
    assert [line[0] for line in lines[1:]] == query_ids[1:], "those that are judged"
    assert {line.split(" ")[0] for line in (tmp_path / "a" / "dev.trec").read_text().splitlines()} == {*query_ids}
    means = np.array([line[1:] for line in lines[1:]], float).mean(0)
    assert dict(zip(lines[0][1:], means.tolist(), strict=True)) == pytest.approx(metrics[0])
    record = read_records(direct)[0]
    assert record["ndcg"] == pytest.approx(metrics[0]["ndcg@10"])


def test_training_on_a_view_of_kept_candidates(tiny_preprocessed: Path, static_warmup: Path, tmp_path: Path) -> None:
    common = ("--data_dir", tiny_preprocessed, "--model_type", "static", *LENGTHS)
    kept, view, checkpoints = tmp_path / "kept", tmp_path / "view", tmp_path / "checkpoints"
    places = ("--training_dir", checkpoints, "--init_model_dir", static_warmup, "--output_dir", kept)
    selection = ("--topk_training", "50", "--negative_sample", "5", "--negative_strategy", "top", "--keep_candidates")
    run("drivers.run_ann_data_gen", *common, *places, *selection, "--end_output_num", "0")
    source = ("--candidates", JobLayout(kept).candidates(0), "--data_dir", tiny_preprocessed)
    run("data.negatives", *source, "--output_dir", view, "--negative_strategy", "ranks:21-30")
    model = ("--ann_dir", view, "--output_dir", checkpoints, "--model_name_or_path", static_warmup)
    steps = ("--max_steps", "10", "--save_steps", "10", "--logging_steps", "5", "--per_gpu_train_batch_size", "16")
    run("drivers.run_ann", *common, *model, *steps, "--learning_rate", "1e-3")
    by_rank = by_rank_of(read_logged(checkpoints / METRICS))
    assert {bucket: values["triples"] for bucket, values in by_rank.items()} == {"21-50": 160}


@pytest.mark.parametrize("index", ["IVF8,Flat"])
def test_an_approximate_index_that_visits_every_cell_is_exact(
    tiny_preprocessed: Path, static_warmup: Path, tmp_path: Path, index: str
) -> None:
    pytest.importorskip("faiss")
    eval_flags = (
        "--data_dir", tiny_preprocessed, "--model_type", "static", *LENGTHS, "--model_name_or_path", static_warmup,
    )  # fmt: skip
    run("drivers.run_eval", *eval_flags, "--output_dir", tmp_path / "exact", "--search_backend", "torch")
    run("drivers.run_eval", *eval_flags, "--output_dir", tmp_path / "ivf", "--faiss_index", index, "--nprobe", "8")
    exact, ivf = (json.loads((tmp_path / name / "metrics.json").read_text())["metrics"] for name in ("exact", "ivf"))
    assert exact == pytest.approx(ivf, abs=1e-6)


def test_a_collection_of_three_passages(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Fewer candidates than anybody asks for: every program runs, or says in one line what to ask for."""
    raw, data_dir = tmp_path / "raw", tmp_path / "data"
    raw.mkdir()
    (raw / "collection.tsv").write_text("a\tred apple pie\nb\tgreen pear tart\nc\tblue plum cake\n")
    for split, query in (("train", "q1\tapple\n"), ("dev.small", "q2\tplum\n")):
        (raw / f"queries.{split}.tsv").write_text(query)
    (raw / "qrels.train.tsv").write_text("q1 0 a 1\n")
    (raw / "qrels.dev.small.tsv").write_text("q2 0 c 1\n")
    model = ("--model_type", "static", "--model_name_or_path", tiny_tokenizer, "--max_seq_length", "32")
    raw_flags = ("--data_dir", raw, "--out_data_dir", data_dir, "--data_type", "1", "--max_query_length", "16")
    run("data.msmarco_data", *raw_flags, *model)
    bm25_flags = ("--raw_data_dir", raw, "--data_dir", data_dir, "--output_dir", tmp_path / "bm25")
    refused = run("drivers.run_bm25", *bm25_flags, code=2)
    assert "--topk_training is 200, the collection has 3 passages" in refused and len(refused.splitlines()) == 1
    # Only the positive has the query's word: BM25 finds no negative, and says so.
    run("drivers.run_bm25", *bm25_flags, "--topk_training", "3", "--negative_sample", "2", code=2)
    encoder = tmp_path / "model"
    encoder.mkdir()
    vocab_size = json.loads((data_dir / "manifest.json").read_text())["vocab_size"]
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 8}).save_pretrained(encoder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer / name, encoder / name)
    generate = (
        "--data_dir", data_dir, "--training_dir", tmp_path / "none", "--init_model_dir", encoder, "--model_type",
        "static", *LENGTHS, "--output_dir", tmp_path / "ann", "--end_output_num", "0", "--negative_strategy", "bottom",
    )  # fmt: skip
    run("drivers.run_ann_data_gen", *generate, "--topk_training", "3", "--negative_sample", "3", processes=2)
    lists = read_negative_lists(JobLayout(tmp_path / "ann").negatives(0))
    assert sorted(lists.negative_QN[0].tolist()) == [1, 2]
    assert lists.positive_Q.tolist() == [0]


def trainer_flags(arm: Path, data_dir: Path, warmup: Path, *more: str | Path) -> list[str | Path]:
    return [
        "--data_dir", data_dir, "--model_type", "static", *LENGTHS, "--ann_dir", arm / "ann_data", "--output_dir",
        arm / "checkpoints", "--model_name_or_path", warmup, "--max_steps", "20", "--save_steps", "10",
        "--logging_steps", "5", "--learning_rate", "1e-3", "--per_gpu_train_batch_size", "16", *more,
    ]  # fmt: skip


def test_jobs_that_disagree_stop_before_they_train(
    tiny_preprocessed: Path, static_warmup: Path, tmp_path: Path
) -> None:
    arm = tmp_path / "arm"
    train_and_generate(arm, tiny_preprocessed, static_warmup, "static")
    flags = trainer_flags(arm, tiny_preprocessed, static_warmup, *LOCKSTEP)
    other_run = run("drivers.run_ann", *flags, code=3).splitlines()[-1]
    assert "max_steps 30 there, 20 here" in other_run and "optimizer" not in other_run
    assert "holds a run already" in run("drivers.run_ann", *flags, "--resume", "never", code=2)
    # Negatives of an earlier run: made from checkpoints that this one has not trained.
    other_rate = ("--overwrite_output_dir", "--learning_rate", "1e-2", "--max_steps", "30")
    stale = run("drivers.run_ann", *flags, *other_rate, code=3)
    assert "already, and this run only begins: another run left them" in stale
    shorter = ("--overwrite_output_dir", "--steps_per_refresh", "5")
    lockstep = run("drivers.run_ann", *flags, *shorter, code=3)
    assert "steps_per_refresh 10 there, 5 here" in lockstep
    asynchronous = run("drivers.run_ann", *flags, "--overwrite_output_dir", "--refresh_mode", "async", code=3)
    assert "refresh_mode lockstep there, async here" in asynchronous


def test_a_trainer_stops_when_the_generator_fails(tiny_preprocessed: Path, static_warmup: Path, tmp_path: Path) -> None:
    arm = tmp_path / "arm"
    flags = trainer_flags(arm, tiny_preprocessed, static_warmup, "--heartbeat_seconds", "0.2")
    trainer = start(tmp_path / "trainer.out", "drivers.run_ann", *flags)
    try:
        wait_for(
            lambda: (
                "waiting for negatives" in (read_beat(arm / "checkpoints", "trainer") or {}).get("doing", "") or None
            ),
            "the trainer to wait for its first negatives",
            limit_seconds=120,
        )
        life = LeaseTimeouts(heartbeat_seconds=1.0, lease_seconds=60.0)
        with pytest.raises(ZeroDivisionError), working(arm / "ann_data", "generator", life, "run"):
            _ = 1 / 0
        assert trainer.wait(60) == 4
    finally:
        trainer.end()
    lines = (tmp_path / "trainer.out").read_text().splitlines()
    assert lines[-1].startswith("run_ann: error: the generator has failed (ZeroDivisionError")


def test_the_rate_never_reaches_zero_before_the_end(
    tiny_preprocessed: Path, static_warmup: Path, tmp_path: Path
) -> None:
    """Without --single_warmup each refresh warms up again; whatever the refreshes do, the last steps still learn."""
    generate = (
        "--data_dir", tiny_preprocessed, "--training_dir", tmp_path / "none", "--init_model_dir", static_warmup,
        "--model_type", "static", *LENGTHS, "--topk_training", "50", "--negative_sample", "1",
    )  # fmt: skip
    arm = tmp_path / "arm"
    run("drivers.run_ann_data_gen", *generate, "--output_dir", arm / "ann_data", "--end_output_num", "0")
    flags = trainer_flags(arm, tiny_preprocessed, static_warmup, "--warmup_steps", "5", "--max_steps", "40")
    output = run("drivers.run_ann", *flags)  # 12 triples: many epochs over the same negatives
    rates = [json.loads(line)["learning_rate"] for line in output.splitlines() if line.startswith("{")]
    expected = [1e-3 * min(step / 5, (40 - step) / 35) for step in range(5, 45, 5)]
    assert rates == pytest.approx(expected)
