"""The lengths that texts are cut at: as given, as the model says, or by default; and what programs say of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, RobertaConfig, RobertaModel

from data.tokens.collection import open_preprocessed
from drivers import run_ann, run_ann_data_gen, run_eval, run_neighbourhood, run_warmup
from drivers.cli.evaluate import EvalFlags, NeighbourhoodFlags
from drivers.cli.generate import GenerateFlags
from drivers.cli.train import AnnFlags, WarmupFlags
from drivers.evaluate import evaluator
from drivers.generate import preflight as generator
from drivers.job import settings
from drivers.job.text_lengths import TextLengths, describe_lengths, lengths_of_process0
from drivers.train import warmup_preflight as warmup
from drivers.train.settings import trained_model, training_settings
from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH
from tests.drivers.test_run_bm25 import call
from tests.exchanging import put_checkpoint
from tests.faults.programs import Inputs
from utils.distributed import collectives
from utils.distributed.world import World
from utils.errors import Disagreement, UserError
from utils.exchange.atomic import dump_with_checksum, load_with_checksum
from utils.exchange.layout import JobLayout
from utils.exchange.markers import read_done, read_run
from utils.exchange.negatives import read_record

NEW_KEY = "initial_config_sha256"  # which earlier versions did not record
TRAINED_WITH = {"max_seq_length": 20, "max_query_length": 5}


def put_config(directory: Path, **recorded: Any) -> str:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "static", **recorded}))
    return str(directory)


def flags_over(model: str, data_dir: Path) -> list[settings.OpeningFlags]:
    common: dict[str, Any] = {"data_dir": str(data_dir), "model_type": "static", "output_dir": f"{model}/out"}
    return [
        EvalFlags(model_name_or_path=model, **common),
        AnnFlags(model_name_or_path=model, ann_dir="a", **common),
        WarmupFlags(model_name_or_path=model, do_train=True, **common),
        WarmupFlags(model_name_or_path=model, do_eval=True, **common),
        WarmupFlags(config_name=f"{model}/config.json", do_train=True, **common),
        GenerateFlags(init_model_dir=model, training_dir="none", **common),
        NeighbourhoodFlags(model_name_or_path=model, negatives=["top=x"], **common),
    ]


def places_of(flags: settings.OpeningFlags) -> list[str]:
    match flags:
        case EvalFlags():
            return evaluator.places_of_lengths(flags)
        case GenerateFlags():
            return generator.places_of_lengths(flags)
        case WarmupFlags():
            return warmup.places_of_lengths(flags)
        case _:
            return settings.places_of_model(flags)


def found_lengths(flags: settings.OpeningFlags) -> TextLengths:
    return settings.lengths_of(flags, places_of(flags))


def lengths_of(flags: settings.OpeningFlags) -> tuple[int, int]:
    found = found_lengths(flags)
    return found.max_seq_length, found.max_query_length


def test_every_program_takes_what_the_model_records(
    tiny_preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = put_config(tmp_path / "trained", **TRAINED_WITH)
    for flags in flags_over(trained, tiny_preprocessed):
        assert lengths_of(flags) == (20, 5), flags
        assert lengths_of(replace(flags, max_seq_length=9)) == (9, 5), "one that is given wins"
    for flags in flags_over(put_config(tmp_path / "plain"), tiny_preprocessed):
        assert lengths_of(flags) == (128, 64), "ANCE's defaults"
    longer = put_config(tmp_path / "longer", max_seq_length=300, max_query_length=5)
    for flags in flags_over(longer, tiny_preprocessed):
        assert lengths_of(flags) == (TINY_MAX_SEQ_LENGTH, 5), "as many as --data_dir holds"
        assert capsys.readouterr().err == ""
        found_lengths(replace(flags, dry_run=True))
        assert capsys.readouterr().err.startswith("warning: lengths: passages up to 32 tokens, as --data_dir was cut: ")


@pytest.mark.parametrize("value", ["many", -3, 0, True, 2.5, None])
def test_what_is_no_length_is_refused_where_it_would_be_taken(
    value: Any, tiny_preprocessed: Path, tmp_path: Path
) -> None:
    flags = flags_over(put_config(tmp_path / "m", max_seq_length=value), tiny_preprocessed)[0]
    with pytest.raises(UserError, match=r"config\.json says max_seq_length .*, expected a number of tokens; give"):
        found_lengths(flags)
    assert lengths_of(replace(flags, max_seq_length=7)) == (7, 64)


def test_a_generator_takes_those_of_the_trainer_s_newest_checkpoint(tiny_preprocessed: Path, tmp_path: Path) -> None:
    initial = put_config(tmp_path / "initial", **TRAINED_WITH)
    flags = GenerateFlags(
        data_dir=str(tiny_preprocessed), model_type="static", init_model_dir=initial,
        training_dir=str(tmp_path / "run"), output_dir=str(tmp_path / "ann"),
    )  # fmt: skip
    assert lengths_of(flags) == (20, 5)
    for step, length in ((9, 11), (10, 12)):
        (put_checkpoint(tmp_path / "run", step) / "config.json").write_text(json.dumps({"max_seq_length": length}))
        assert lengths_of(flags) == (length, 5)
    embeddings = tmp_path / "ann" / "embeddings" / "step-1-0123456789abcdef"
    embeddings.mkdir(parents=True)
    record = {"step": 1, "model_sha256": "m", "max_seq_length": 13, "max_query_length": 6}
    (embeddings / "embeddings.json").write_text(dump_with_checksum(record))
    assert lengths_of(flags) == (12, 5) and lengths_of(replace(flags, load_gen=True)) == (13, 6)
    evaluation = EvalFlags(
        data_dir=str(tiny_preprocessed), model_type="static", output_dir="o", embedding_dir=str(embeddings)
    )
    assert lengths_of(evaluation) == (13, 6)


def test_an_evaluation_of_a_warmup_takes_those_of_what_it_trained(tiny_preprocessed: Path, tmp_path: Path) -> None:
    plain = put_config(tmp_path / "plain")
    (put_checkpoint(tmp_path / "warmup", 10) / "config.json").write_text(json.dumps(TRAINED_WITH))
    flags = WarmupFlags(
        data_dir=str(tiny_preprocessed), model_type="static", model_name_or_path=plain,
        output_dir=str(tmp_path / "warmup"), do_eval=True,
    )  # fmt: skip
    assert lengths_of(flags) == (128, 64), "of the model given"
    assert lengths_of(replace(flags, eval_all_checkpoints=True)) == (20, 5)
    assert lengths_of(replace(flags, model_name_or_path="", config_name=plain)) == (20, 5)


def test_ranks_that_saw_different_checkpoints_take_those_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    own = TextLengths(9, 4, ("m",))
    told: list[Any] = []
    monkeypatch.setattr(collectives, "broadcast_json", lambda _, value: told.append(value) or told[0])
    for rank in (0, 1):
        seen_late = replace(own, max_seq_length=9 + rank, max_query_length=4 + rank)
        assert lengths_of_process0(World(rank, 2, torch.device("cpu")), seen_late) == own


def test_settings_at_other_lengths_are_those_built_with_them() -> None:
    flags = WarmupFlags(
        data_dir="d", model_type="static", model_name_or_path="m", output_dir="o", do_train=True,
        per_gpu_eval_batch_size=3, no_cuda=True,
    )  # fmt: skip
    own, other = TextLengths(9, 4), TextLengths(20, 5)
    model, compute = trained_model(flags), settings.compute_settings(flags)
    built_with_own, built_with_other = (settings.model_job(flags, each, model, compute) for each in (own, other))
    moved = built_with_own.at(other)
    assert moved.encoder == built_with_other.encoder != built_with_own.encoder
    assert moved.encoder.encoding.budget_tokens == 3 * 20
    assert moved.deciding_values == built_with_other.deciding_values != built_with_own.deciding_values
    trained_with_own = training_settings(flags, built_with_own, {}, (1,))
    assert trained_with_own.at(other) == training_settings(flags, built_with_other, {}, (1,)) != trained_with_own


def test_the_line_says_where_lengths_come_from(tiny_preprocessed: Path, tmp_path: Path) -> None:
    collection = open_preprocessed(tiny_preprocessed, 1, 1)

    def said(model: str, *given: int) -> str:
        flags = flags_over(model, tiny_preprocessed)[0]
        given_flags = dict(zip(("max_seq_length", "max_query_length"), given, strict=False))
        return describe_lengths(found_lengths(replace(flags, **given_flags)), collection)

    trained, longer = put_config(tmp_path / "a", **TRAINED_WITH), put_config(tmp_path / "b", max_seq_length=300)
    as_trained = "lengths: passages up to 20 tokens (as the model was trained), queries up to 5 tokens (as the model "
    assert said(trained).startswith(as_trained)
    assert "passages up to 30 tokens (the model was trained with 20), queries" in said(trained, 30)
    cut = "warning: lengths: passages up to 32 tokens "
    cut += f"(the model was trained with 300, {tiny_preprocessed} was cut at 32)"
    assert said(longer, 32, 16).startswith(cut) and said(longer).startswith(cut)
    assert said(longer).endswith(
        "queries up to 64 tokens (--max_query_length or its default: the model's config.json records none)"
    )


# The programs


@pytest.fixture(scope="module", name="warmup")
def fixture_warmup(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained on passages of 20 tokens and queries of 5."""
    directory = tmp_path_factory.mktemp("warmup")
    call(
        run_warmup.main, data_dir=inputs.data_dir, model_type="static", output_dir=directory, do_train="true",
        config_name=inputs.directory / "config.json", tokenizer_name=inputs.tokenizer, bm25_dir=inputs.bm25_dir,
        max_steps=4, save_steps=4, no_cuda="true", learning_rate=1e-2, **TRAINED_WITH,
    )  # fmt: skip
    return directory / "checkpoint-4"


def evaluate(inputs: Inputs, model: Path, out: Path, **lengths: int) -> str:
    call(
        run_eval.main, data_dir=inputs.data_dir, model_type="static", model_name_or_path=model, output_dir=out,
        no_cuda="true", **lengths,
    )  # fmt: skip
    return (out / "dev.trec").read_text()


def test_a_model_is_evaluated_as_it_was_trained(
    inputs: Inputs, warmup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((warmup / "config.json").read_text())
    assert {name: config[name] for name in TRAINED_WITH} == TRAINED_WITH
    found = evaluate(inputs, warmup, tmp_path / "without")
    output = capsys.readouterr().out
    assert '"max_seq_length": 20, "max_query_length": 5' in output
    assert "preflight: lengths: passages up to 20 tokens (as the model was trained), queries up to 5 tokens" in output
    assert evaluate(inputs, warmup, tmp_path / "given", **TRAINED_WITH) == found
    other = {"max_seq_length": TINY_MAX_SEQ_LENGTH, "max_query_length": TINY_MAX_QUERY_LENGTH}
    capsys.readouterr()
    assert evaluate(inputs, warmup, tmp_path / "other", **other) != found
    assert "passages up to 32 tokens (the model was trained with 20), queries up to 16" in capsys.readouterr().out


def test_trainer_and_generator_take_the_warmup_s_and_record_them_again(
    inputs: Inputs, warmup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"data_dir": inputs.data_dir, "model_type": "static", "no_cuda": "true"}
    run, ann = tmp_path / "run", tmp_path / "ann"
    generator = {**common, "init_model_dir": warmup, "training_dir": run, "output_dir": ann, "topk_training": 20}
    trainer = {**common, "model_name_or_path": warmup, "ann_dir": ann, "output_dir": run, "max_steps": 2}
    call(run_ann_data_gen.main, **generator, negative_strategy="top", end_output_num=0)
    call(run_ann.main, **trainer, learning_rate=1e-3)
    for directory, read in ((run, read_run(run)), (ann, read_run(ann))):
        assert read is not None and read["science"] | TRAINED_WITH == read["science"], directory
    record, config = read_record(ann, 0), json.loads((run / "checkpoint-2" / "config.json").read_text())
    assert record | TRAINED_WITH == record and config | TRAINED_WITH == config
    with pytest.raises(Disagreement, match="max_seq_length 20 there, 30 here"):
        call(run_ann.main, **trainer, learning_rate=1e-3, max_seq_length=30)
    capsys.readouterr()
    negatives = f"top={JobLayout(ann).negatives(0)}"
    call(
        run_neighbourhood.main, **common, model_name_or_path=run / "checkpoint-2", output_dir=tmp_path / "near",
        negatives=negatives,
    )  # fmt: skip
    assert "lengths: passages up to 20 tokens (as the model was trained)" in capsys.readouterr().out
    # A name in the trainer's directory that no checkpoint can have is a mistake.
    for name in ("checkpoint-02", "checkpoint-2.bak", "latest"):
        with pytest.raises(UserError, match=rf"--last_checkpoint_dir .*{name} is in --training_dir, expected .*checkp"):
            call(run_ann_data_gen.main, **generator, last_checkpoint_dir=run / name, dry_run="true")
    for place in (run / "checkpoint-2", warmup, run / "deeper" / "latest"):
        call(run_ann_data_gen.main, **generator, last_checkpoint_dir=place, dry_run="true", negative_strategy="top")
    # Embeddings know theirs: another length cannot be had of them.
    call(run_ann_data_gen.main, **{**generator, "output_dir": tmp_path / "stored"}, inference="true")
    load = {**generator, "output_dir": tmp_path / "stored", "load_gen": "true", "dry_run": "true"}
    call(run_ann_data_gen.main, **load)
    (embeddings,) = (tmp_path / "stored" / "embeddings").iterdir()
    # An earlier version may not have said which model made them.
    earlier = Path(shutil.copytree(tmp_path / "stored", tmp_path / "earlier"))
    for path in (earlier / "embeddings" / embeddings.name).glob("*.json"):
        stored = {name: value for name, value in load_with_checksum(path).items() if name != NEW_KEY}
        path.write_text(dump_with_checksum({**stored, "model_sha256": ""}))
    capsys.readouterr()
    call(run_ann_data_gen.main, **{**load, "output_dir": earlier, "dry_run": "false"})
    assert capsys.readouterr().out.count("which do not say which model made them (an earlier version did)") == 1
    record = read_record(earlier, 0)
    assert record["model_sha256"] == "" and NEW_KEY not in record, "as an earlier version's, which a trainer accepts"
    evaluation = {**common, "embedding_dir": embeddings, "output_dir": tmp_path / "eval", "dry_run": "true"}
    call(run_eval.main, **evaluation, max_query_length=5)
    for name, (length, other) in {"max_seq_length": (20, 30), "max_query_length": (5, 4)}.items():
        refused = rf"--{name} is {other}, the embeddings in .* were made with {length}: give"
        for program, flags in ((run_ann_data_gen, load), (run_eval, evaluation)):
            with pytest.raises(UserError, match=refused):
                call(program.main, **flags, **{name: other})


def test_a_run_begun_before_lengths_were_recorded_goes_on(inputs: Inputs, warmup: Path, tmp_path: Path) -> None:
    """Its initial model says none, its flags were the defaults or given; the same command line resumes it."""
    plain = Path(shutil.copytree(inputs.model, tmp_path / "plain"))
    common = {"data_dir": inputs.data_dir, "model_type": "static", "no_cuda": "true", "max_seq_length": 32}
    common["max_query_length"] = 16
    run, ann = tmp_path / "run", tmp_path / "ann"
    call(
        run_ann_data_gen.main, **common, init_model_dir=plain, training_dir=run, output_dir=ann, topk_training=20,
        negative_strategy="top", end_output_num=0,
    )  # fmt: skip
    trainer = {**common, "model_name_or_path": plain, "ann_dir": ann, "output_dir": run, "learning_rate": 1e-3}
    call(run_ann.main, **trainer, max_steps=2)
    stored = read_run(run)
    assert stored is not None
    earlier = {name: value for name, value in stored["science"].items() if name != "initial_config_sha256"}
    (run / "RUN.json").write_text(dump_with_checksum({**stored, "science": earlier}))
    (run / "DONE.json").unlink()
    call(run_ann.main, **trainer, max_steps=2)
    assert read_done(run) is not None


def test_other_readers_pass_the_two_keys_over(tmp_path: Path) -> None:
    """As ANCE's and Pyserini's do, which read the config with transformers."""
    shape: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    plain = RobertaModel(RobertaConfig(**shape, intermediate_size=8, max_position_embeddings=20)).eval()
    plain.config.update(TRAINED_WITH)
    plain.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["max_seq_length"] == 20
    assert AutoConfig.from_pretrained(tmp_path).max_query_length == 5
    ids = torch.tensor([[0, 7, 8, 2]])
    with torch.no_grad():
        assert torch.equal(
            RobertaModel.from_pretrained(tmp_path).eval()(ids).last_hidden_state, plain(ids).last_hidden_state
        )
