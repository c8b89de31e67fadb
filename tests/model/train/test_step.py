"""The training step: its schedule, accumulation, clipping, precision, ranks, and what a checkpoint keeps of it."""

from __future__ import annotations

import copy
import json
import math
import sys
import types
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers import RobertaConfig

from data.mining.negative_lists import NegativeLists
from data.training.batches import Batch, batches_of_triples, make_batch
from drivers.job.setup import seed_everything
from drivers.train.trainer import Trainer, read_trainer_state
from model.encoders.registry import load_encoder
from model.encoders.roberta_dot import RobertaDot
from model.encoders.spec import Side
from model.encoders.static import StaticEncoder
from model.train.checkpoint import load_optimizer_scheduler, load_state, rng_states, save_state
from model.train.lamb import Lamb
from model.train.micro_batch import to_device
from model.train.optim import linear_schedule, make_optimizer, named_groups, parameter_groups
from model.train.step import TrainingState, TrainingStep, make_state, train_step
from tests.data.training.test_batches import made_up_lists
from tests.drivers.job.test_run_config import alone
from tests.forked import spawn
from tests.processes_as_threads import ALONE
from tests.texts import listed, ragged, token_batch
from utils.declared import losses as declared
from utils.distributed import process_group
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.checkpoints import Checkpoint

QUERIES, PASSAGES, VOCABULARY = 12, 40, 50
LOSSES = tuple(declared.LOSSES)


def static_encoder() -> StaticEncoder:
    torch.manual_seed(0)
    return StaticEncoder({"vocab_size": VOCABULARY, "embedding_size": 8, "score_scale": 0.5})


def roberta_encoder() -> RobertaDot:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
        type_vocab_size=1,
        initializer_range=0.3,  # the usual 0.02 would make all embeddings of so small a model nearly equal
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return RobertaDot(config)


ENCODERS = {"static": static_encoder, "rdot_nll": roberta_encoder}


def gather_texts(first: int, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Made-up texts of 3 to 9 tokens, each a function of its row."""
    texts = []
    for row in rows_B.tolist():
        rng = np.random.default_rng([first, row])
        texts.append([0, *rng.integers(3, VOCABULARY, rng.integers(1, 8)).tolist(), 2])
    return ragged(texts)


def made_up_batches(loss: str, size: int, count: int, rank: int = 0, ranks: int = 1) -> list[Batch]:
    """``count`` batches of ``size`` triples, all ranks' together, of this rank's part."""
    rng = np.random.default_rng(1)
    drawn = np.stack([rng.choice(PASSAGES, 5, replace=False) for _ in range(QUERIES)])
    zeros = np.zeros((QUERIES, 4))
    lists = NegativeLists(np.arange(QUERIES), drawn[:, 0], drawn[:, 1:], zeros.astype(np.int64), zeros)
    positives = (lists.query_Q, lists.positive_Q) if declared.LOSSES[loss].is_over_batch else None
    return [
        make_batch(
            triples, rank, ranks, lambda rows: gather_texts(0, rows), lambda rows: gather_texts(1, rows), positives
        )
        for triples in islice(batches_of_triples(lists, 1, size, 3, 0), count)
    ]


def constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def sgd_state(encoder: nn.Module, loss: str = "pairwise", max_grad_norm: float = 0.0) -> TrainingState:
    """Plain descent at rate 1: a step's change of the weights is the gradient."""
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    return make_state(encoder, loss, optimizer, constant(optimizer), ALONE, None, max_grad_norm)


def flat_weights(encoder: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in encoder.parameters()])


def test_frozen_weights_have_no_optimiser_state_and_no_layer() -> None:
    encoder = roberta_encoder()
    encoder.roberta.embeddings.requires_grad_(False)
    assert "embeddings" not in named_groups(encoder)
    optimizer = make_optimizer("lamb", encoder, 1e-2, 1e-8, 0.1)
    before = copy.deepcopy(encoder.state_dict())
    state = make_state(encoder, "pairwise", optimizer, constant(optimizer), ALONE, None, 1.0)
    train_step(state, made_up_batches("pairwise", 8, 1))
    is_same = {name: torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items()}
    assert {name for name, same in is_same.items() if same} >= {n for n in before if n.startswith("roberta.embeddings")}
    assert not is_same["embeddingHead.weight"]
    assert len(optimizer.state) == sum(parameter.requires_grad for parameter in encoder.parameters())


# The schedule


def test_the_schedule_is_linear_up_and_down() -> None:
    warmup, total, peak = 4, 20, 0.5
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = linear_schedule(optimizer, warmup, total)
    found = []
    for _ in range(total + 3):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [peak * min(step / warmup, max(0.0, (total - step) / (total - warmup))) for step in range(total + 3)]
    assert found == pytest.approx(expected)
    assert found[0] == 0 and found[warmup] == peak and found[total] == 0


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (10, 10), (20, 10), (0, 1)])
def test_schedules_at_the_edges_stay_between_0_and_the_peak(warmup: int, total: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = linear_schedule(optimizer, warmup, total)
    assert optimizer.param_groups[0]["lr"] == (0.0 if warmup else 1.0)
    for _ in range(30):
        optimizer.step()
        scheduler.step()
        assert 0.0 <= optimizer.param_groups[0]["lr"] <= 1.0
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_a_restarted_schedule_begins_again_with_the_rate_given() -> None:
    encoder = static_encoder()
    optimizer = make_optimizer("lamb", encoder, 0.1, 1e-6, 0.0)
    state = make_state(encoder, "pairwise", optimizer, linear_schedule(optimizer, 2, 10), ALONE, None, 1.0)
    batches = made_up_batches("pairwise", 4, 12)
    rates = []
    for number, batch in enumerate(batches):
        if number == 5:
            state.restart_schedule(0.2, 4, 8)
        rates.append(state.learning_rate)
        train_step(state, [batch])
    first = [0.1 * min(step / 2, (10 - step) / 8) for step in range(5)]
    second = [0.2 * min(step / 4, (8 - step) / 4) for step in range(7)]
    assert rates == pytest.approx(first + second)
    assert {group["lr"] for group in optimizer.param_groups} == {state.learning_rate}
    assert state.step == 12


# The step


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_step_s_loss_is_that_of_scores_computed_one_by_one(kind: str, loss: str) -> None:
    encoder = ENCODERS[kind]().eval()
    (batch,) = made_up_batches(loss, 8, 1)
    with torch.no_grad():
        found = float(TrainingStep(encoder, loss).eval()(to_device(batch, ALONE.device)))

        def vectors(texts: list[list[int]], side: Side) -> np.ndarray:
            alone = (encoder.encode(token_batch([text]), side).rows for text in texts)
            return np.concatenate([rows.double().numpy() for rows in alone])

        queries_BD = vectors(listed(batch.query_tokens_T, batch.query_offsets_B1), "query")
        passages_MD = vectors(listed(batch.passage_tokens_T, batch.passage_offsets_M1), "passage")
    losses = []
    for t in range(8):
        query_D, positive = queries_BD[batch.query_index_T[t]], batch.positive_index_T[t]
        others = [batch.negative_index_T[t]]
        if loss == "in_batch":
            assert batch.allowed_TG is not None and batch.target_T is not None and batch.target_T[t] == positive
            others = [g for g in np.flatnonzero(batch.allowed_TG[t]) if g != positive]
            assert len(others) > 1
        scores = [query_D @ passages_MD[g] for g in [positive, *others]]
        losses.append(math.log(sum(math.exp(score - scores[0]) for score in scores)))
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_accumulated_micro_batches_are_one_batch(kind: str) -> None:
    whole, parts = ENCODERS[kind](), ENCODERS[kind]()
    loss = train_step(sgd_state(whole), made_up_batches("pairwise", 8, 1))
    accumulated = train_step(sgd_state(parts), made_up_batches("pairwise", 4, 2))
    assert accumulated == pytest.approx(loss, rel=1e-5)
    assert (flat_weights(whole) - flat_weights(ENCODERS[kind]())).norm() > 0.01
    assert torch.allclose(flat_weights(whole), flat_weights(parts), atol=1e-6)


def test_a_step_leaves_no_gradient_behind() -> None:
    encoder = static_encoder()
    state = sgd_state(encoder)
    train_step(state, made_up_batches("pairwise", 4, 1))
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize("largest", [0.0, 1e-3, 1e6])
def test_gradients_are_clipped_to_their_common_norm(largest: float) -> None:
    start, free, clipped = flat_weights(static_encoder()), static_encoder(), static_encoder()
    batch = made_up_batches("pairwise", 4, 1)
    train_step(sgd_state(free), batch)
    train_step(sgd_state(clipped, max_grad_norm=largest), batch)
    gradient, change = start - flat_weights(free), start - flat_weights(clipped)
    factor = min(1.0, largest / float(gradient.norm())) if largest > 0 else 1.0
    assert torch.allclose(change, gradient * factor, rtol=1e-3, atol=1e-7)


def test_a_few_steps_learn() -> None:
    for loss in LOSSES:
        encoder = static_encoder()
        optimizer = make_optimizer("adamW", encoder, 0.02, 1e-8, 0.0)
        state = make_state(encoder, loss, optimizer, constant(optimizer), ALONE, None, 1.0)
        losses = [train_step(state, [batch]) for batch in made_up_batches(loss, 12, 40)]
        assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_that_is_not_finite_stops_training_before_the_weights_change(loss: str) -> None:
    encoder = static_encoder()
    with torch.no_grad():
        encoder.norm.bias[0] = float("nan")
    before = flat_weights(encoder)
    with pytest.raises(UserError, match=r"the loss is nan at step 1; lower --learning_rate"):
        train_step(sgd_state(encoder, loss), made_up_batches(loss, 4, 1))
    assert torch.equal(flat_weights(encoder).nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("largest", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_training_before_the_weights_change(largest: float) -> None:
    """As another process sees a peer's NaN: its own loss is fine, the averaged gradient is not."""
    encoder = static_encoder()
    encoder.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = flat_weights(encoder)
    with pytest.raises(UserError, match=r"the gradient is not finite at step 1"):
        train_step(sgd_state(encoder, max_grad_norm=largest), made_up_batches("pairwise", 4, 1))
    assert torch.equal(flat_weights(encoder), before)


# Precision


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_steps_are_close_to_float32(kind: str, loss: str, dtype: torch.dtype) -> None:
    encoders, losses = [], []
    for wanted in (None, dtype):
        encoder = ENCODERS[kind]()
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
        state = make_state(encoder, loss, optimizer, constant(optimizer), ALONE, wanted, 1.0)
        assert state.scaler.is_enabled() == (wanted is torch.float16)
        losses.append(train_step(state, made_up_batches(loss, 8, 1)))
        assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
        encoders.append(encoder)
    start = flat_weights(ENCODERS[kind]())
    exact, rounded = (flat_weights(encoder) - start for encoder in encoders)
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]
    assert float(torch.cosine_similarity(exact, rounded, dim=0)) > 0.99
    assert float(rounded.norm()) == pytest.approx(float(exact.norm()), rel=0.05)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the first step is one of the skipped
def test_fp16_s_scaler_skips_a_step_that_overflows_and_goes_on() -> None:
    encoder = static_encoder()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    state = make_state(encoder, "pairwise", optimizer, constant(optimizer), ALONE, torch.float16, 1.0)
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 2.0**127})
    start, scale = flat_weights(encoder), 2.0**127
    while torch.equal(flat_weights(encoder), start):
        train_step(state, made_up_batches("pairwise", 4, 1))
        assert torch.isfinite(flat_weights(encoder)).all()
        if torch.equal(flat_weights(encoder), start):
            scale /= 2
            assert state.scaler.get_scale() == scale
    assert 1 < state.step < 127


def fp16_state(encoder: nn.Module, loss: str) -> TrainingState:
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    return make_state(encoder, loss, optimizer, constant(optimizer), ALONE, torch.float16, 1.0)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gradient", [math.inf, 0.0])
def test_fp16_skips_a_step_whose_loss_is_not_finite_and_goes_on(loss: str, gradient: float) -> None:
    """Also where the loss's gradient is finite. The sums by rank hold nothing of such a step."""
    encoder, clean = static_encoder(), static_encoder()
    state, expected = fp16_state(encoder, loss), fp16_state(clean, loss)
    first, second = made_up_batches(loss, 4, 2)
    loss_of = TrainingStep.loss_of

    def overflowing(*arguments: Any, **rows: torch.Tensor) -> torch.Tensor:
        found = loss_of(*arguments, **rows)
        return found * gradient + math.inf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "loss_of", overflowing)
        start = flat_weights(encoder)
        assert not math.isfinite(train_step(state, [first]))
    assert torch.equal(flat_weights(encoder), start)
    assert (state.step, state.skipped, state.scaler.get_scale()) == (1, 1, 2.0**15)
    assert float(state.tally.sums_B4.abs().sum()) == 0
    expected.scaler.load_state_dict(state.scaler.state_dict())
    assert train_step(state, [second]) == train_step(expected, [second])
    assert torch.equal(flat_weights(encoder), flat_weights(clean)) and not torch.equal(flat_weights(encoder), start)
    assert torch.equal(state.tally.sums_B4, expected.tally.sums_B4) and state.skipped == 1


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_skipped_steps_are_counted_and_not_in_the_mean_loss(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[tuple[int, float]] = []
    log = types.SimpleNamespace(training=lambda step, rate, mean, **others: lines.append((step, mean)))
    session = types.SimpleNamespace(set_status=lambda **told: None)
    state = fp16_state(static_encoder(), "pairwise")
    trainer = Trainer(types.SimpleNamespace(logging_steps=2), session, state, 6, [], {}, log)  # type: ignore[arg-type]
    losses = []
    for number, batch in enumerate(made_up_batches("pairwise", 4, 6)):
        with pytest.MonkeyPatch.context() as patch:
            if number in (1, 2, 3):
                patch.setattr(TrainingStep, "loss_of", lambda self, queries_BD, *others, **rows: queries_BD.sum() / 0.0)
            trainer.step([batch])
        losses.append(trainer.losses.copy())
    assert [step for step, _ in lines] == [2, 6] and all(math.isfinite(mean) for _, mean in lines)
    assert lines[0][1] == losses[0][0], "the second step was skipped"
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
    assert [line.split(":")[0] for line in said] == [f"skipped {n} of the steps since the last line" for n in (1, 2)]


def told_by_the_card() -> Any:
    """What a checkpoint's model card says of the training settings."""
    return types.SimpleNamespace(
        initial_model="",
        loss="pairwise",
        optimizer=types.SimpleNamespace(name="adamW", learning_rate=1e-3),
        batch=types.SimpleNamespace(triples=4),
        micro_batches=1,
    )


def test_a_checkpoint_keeps_what_the_next_line_will_tell(tmp_path: Path) -> None:
    session = alone(tmp_path)
    state = fp16_state(static_encoder(), "pairwise")
    trainer = Trainer(told_by_the_card(), session, state, 6, [], {"run_id": "r"}, None)
    state.step, state.skipped, trainer.losses = 5, 2, [0.25, 0.5]
    state.tally.sums_B4[1] = torch.tensor([3.0, math.nan, 0.5, math.inf])
    trainer.publish()
    path = tmp_path / "checkpoint-5"
    json.loads((path / "trainer_state.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    stored = read_trainer_state(Checkpoint(path, 5, {}))
    again = Trainer(types.SimpleNamespace(), session, fp16_state(static_encoder(), "pairwise"), 6, [], {}, None)
    again.restore(stored, 5)
    assert (again.state.skipped, again.losses, again.saved_step) == (2, [0.25, 0.5], 5)
    expected = state.tally.sums_B4.nan_to_num(nan=-1.0, posinf=-1.0)
    assert torch.equal(again.state.tally.sums_B4.nan_to_num(nan=-1.0), expected)
    del stored["skipped"]  # as an earlier version's
    again.restore(stored, 5)
    assert again.state.skipped == 0


def test_a_position_in_an_earlier_order_of_triples_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At each resume, until training switches to other negatives; a run of this version's says nothing."""
    full, short = made_up_lists([4] * 3), made_up_lists([4, 1, 4])
    settings = told_by_the_card()
    session = alone(tmp_path)
    stored = {"losses": [], "seconds": 1.0}
    for step, begun_by_earlier in ((5, True), (6, True), (7, False)):
        trainer = Trainer(settings, session, fp16_state(static_encoder(), "pairwise"), 9, [], {"run_id": "r"}, None)
        trainer.restore(stored, 5)
        capsys.readouterr()
        assert trainer.resumes_other_order(short, 2) == begun_by_earlier and not trainer.resumes_other_order(full, 2)
        said = capsys.readouterr().out
        assert said.count("\n") == ("an earlier version began on these negatives" in said) == begun_by_earlier
        if step == 6:
            trainer.triple_order = 2  # other negatives
        trainer.state.step = step
        trainer.publish()
        stored = read_trainer_state(Checkpoint(tmp_path / f"checkpoint-{step}", step, {}))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_fp16_ends_where_no_step_is_finite_any_more() -> None:
    encoder = static_encoder()
    with torch.no_grad():
        encoder.norm.bias[0] = float("nan")
    state = fp16_state(encoder, "pairwise")
    with pytest.raises(UserError, match=r"not been finite in fp16 again and again, .* loss scale is 6e-05"):
        for _ in range(100):
            train_step(state, made_up_batches("pairwise", 4, 1))
    assert state.skipped == 30


# Optimisers


def test_groups_are_ance_s_layers_and_hold_every_parameter_once() -> None:
    """ANCE's run_ann.py: roberta.embeddings, each of roberta.encoder.layer, and what is left."""
    encoder = roberta_encoder()
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in parameter_groups(encoder)]
    expected = [
        {name for name in names.values() if name.startswith("roberta.embeddings.")},
        {name for name in names.values() if name.startswith("roberta.encoder.layer.0.")},
        {name for name in names.values() if name.startswith("roberta.encoder.layer.1.")},
        {"embeddingHead.weight", "embeddingHead.bias", "norm.weight", "norm.bias"},
    ]
    assert groups == expected
    assert sum(map(len, groups)) == len(names) == len(list(encoder.parameters()))


def test_the_static_encoder_s_groups_hold_every_parameter_once() -> None:
    encoder = static_encoder()
    ids = [[id(parameter) for parameter in group["params"]] for group in parameter_groups(encoder)]
    assert ids[0] == [id(encoder.embeddings.weight)]
    assert sorted(chain.from_iterable(ids)) == sorted(map(id, encoder.parameters()))


@pytest.mark.parametrize(("name", "kind"), [("lamb", Lamb), ("adamW", torch.optim.AdamW)])
def test_optimisers_take_their_settings(name: str, kind: type) -> None:
    optimizer = make_optimizer(name, roberta_encoder(), 0.3, 1e-7, 0.02)
    assert type(optimizer) is kind and len(optimizer.param_groups) == 4
    for group in optimizer.param_groups:
        assert (group["lr"], group["eps"], group["weight_decay"]) == (0.3, 1e-7, 0.02)


def test_where_apex_is_missing_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.setitem(sys.modules, "apex.optimizers", None)
    with pytest.raises(UserError, match=r"github.com/NVIDIA/apex .*PyPI's package called apex is another"):
        make_optimizer("apex_fused_lamb", static_encoder(), 0.1, 1e-6, 0.0)


def test_apex_s_lamb_is_asked_for_ance_s_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedLAMB = lambda groups, **settings: asked.update(settings, groups=groups)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    make_optimizer("apex_fused_lamb", roberta_encoder(), 0.1, 1e-6, 0.01)
    assert len(asked["groups"]) == 4
    assert (asked["lr"], asked["eps"], asked["weight_decay"]) == (0.1, 1e-6, 0.01)
    assert asked["bias_correction"] is False and asked["use_nvlamb"] is True


# Checkpoints


def full_state(encoder: nn.Module, optimizer_name: str, dtype: torch.dtype | None = None) -> TrainingState:
    optimizer = make_optimizer(optimizer_name, encoder, 0.05, 1e-6, 0.01)
    return make_state(encoder, "pairwise", optimizer, linear_schedule(optimizer, 2, 20), ALONE, dtype, 1.0)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("optimizer_name", ["lamb", "adamW"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_stored_run_goes_on_identically(
    tmp_path: Path, kind: str, optimizer_name: str, dtype: torch.dtype | None
) -> None:
    batches = made_up_batches("pairwise", 4, 6)
    whole = full_state(ENCODERS[kind](), optimizer_name, dtype)
    for batch in batches[:3]:
        train_step(whole, [batch])
    save_state(whole, tmp_path, [], {"refresh": 7}, rng_states(ALONE))
    expected = torch.rand(5)  # the next numbers that dropout would have drawn
    assert json.loads((tmp_path / "trainer_state.json").read_text()) == {"step": 3, "refresh": 7}
    resumed = full_state(load_encoder(kind, str(tmp_path)), optimizer_name, dtype)
    torch.manual_seed(99)
    load_state(resumed, tmp_path, 3)
    assert resumed.step == whole.step == 3 and torch.equal(torch.rand(5), expected)
    assert resumed.learning_rate == whole.learning_rate
    assert resumed.scaler.get_scale() == whole.scaler.get_scale()
    for batch in batches[3:]:
        assert train_step(whole, [batch]) == train_step(resumed, [batch])
    assert torch.equal(flat_weights(whole.encoder), flat_weights(resumed.encoder))
    assert whole.learning_rate == resumed.learning_rate


def test_the_tokenizer_travels_with_the_checkpoint(tmp_path: Path, tiny_tokenizer: Path) -> None:
    files = [tiny_tokenizer / "tokenizer.json", tiny_tokenizer / "tokenizer_config.json"]
    save_state(full_state(static_encoder(), "lamb"), tmp_path, files, {}, rng_states(ALONE))
    for path in files:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def stored_run(directory: Path, encoder: nn.Module, optimizer_name: str) -> TrainingState:
    state = full_state(encoder, optimizer_name)
    train_step(state, made_up_batches("pairwise", 4, 1))
    save_state(state, directory, [], {}, rng_states(ALONE))
    return state


def test_ance_s_optimiser_and_schedule_are_read(tmp_path: Path) -> None:
    """ANCE stores both as bare state dicts; its LAMB keeps a step and three norms next to the moments."""
    state = stored_run(tmp_path, static_encoder(), "lamb")
    stored = copy.deepcopy(state.optimizer.state_dict())
    for entry in stored["state"].values():
        entry.update(step=1, weight_norm=torch.tensor(1.0), adam_norm=torch.tensor(2.0), trust_ratio=0.5)
    torch.save(stored, tmp_path / "optimizer.pt")
    torch.save(state.scheduler.state_dict(), tmp_path / "scheduler.pt")
    again = full_state(load_encoder("static", str(tmp_path)), "lamb")
    load_optimizer_scheduler(again, tmp_path)
    (batch,) = made_up_batches("in_batch", 4, 1)
    train_step(state, [batch])
    train_step(again, [batch])
    assert torch.equal(flat_weights(state.encoder), flat_weights(again.encoder))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "noise", "text"])
def test_a_damaged_optimiser_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    stored_run(tmp_path, static_encoder(), "lamb")
    path = tmp_path / name
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(path.read_bytes()[:-200])
        case "noise":
            path.write_bytes(bytes(range(256)))
        case "text":
            path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"--load_optimizer_scheduler") as caught:
        load_optimizer_scheduler(full_state(static_encoder(), "lamb"), tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_process_that_the_earlier_job_did_not_have_keeps_its_own_draws(tmp_path: Path) -> None:
    state = stored_run(tmp_path, static_encoder(), "lamb")
    drawn = []
    for world, step in ((ALONE, 1), (World(1, 2, ALONE.device), 1), (World(1, 2, ALONE.device), 2)):
        state.world = world
        seed_everything(7, world.process, step)
        load_state(state, tmp_path, step)
        drawn.append(torch.rand(64).tolist())
    torch.manual_seed(int(np.random.SeedSequence([7, 1, 1]).generate_state(1, np.uint64)[0]))
    assert drawn[1] == torch.rand(64).tolist()
    load_state(state, tmp_path, 1)
    assert len({tuple(draws) for draws in drawn}) == 3, "neither process 0's, nor of an earlier step again"


def test_another_model_s_or_optimiser_s_state_is_refused(tmp_path: Path) -> None:
    stored_run(tmp_path, static_encoder(), "lamb")
    for other in (full_state(roberta_encoder(), "lamb"), full_state(static_encoder(), "adamW")):
        with pytest.raises(UserError, match="does not fit this model and --optimizer"):
            load_optimizer_scheduler(other, tmp_path)


# Several ranks

RANKS, STEPS, ACCUMULATED = 2, 3, 2
RUNS = [(kind, loss, tokens) for kind in ENCODERS for loss in LOSSES for tokens in (0, 30)]  # of GradCache


def train_run(
    encoder: nn.Module, loss: str, grad_cache_tokens: int, world: World, steps: int = STEPS
) -> tuple[torch.Tensor, list[float]]:
    """Steps of two micro-batches of 8 triples: the weights, and this rank's losses."""
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5)
    state = make_state(encoder, loss, optimizer, constant(optimizer), world, None, 1.0, grad_cache_tokens)
    batches = iter(made_up_batches(loss, 8, steps * ACCUMULATED, world.process, world.size))
    losses = [train_step(state, list(islice(batches, ACCUMULATED))) for _ in range(steps)]
    return flat_weights(encoder), losses


def one_process(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=RANKS)
    world = World(rank, RANKS, torch.device("cpu"))
    found = {str(run): train_run(ENCODERS[run[0]](), *run[1:], world) for run in RUNS}
    process_group.stop(world)
    torch.save(found, Path(directory) / f"rank-{rank}.pt")


def test_two_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    spawn(one_process, tmp_path, processes=RANKS)
    found = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(RANKS)]
    for run in RUNS:
        kind, loss, _ = run
        weights, losses = train_run(ENCODERS[kind](), loss, 0, ALONE)
        (first, losses_0), (second, losses_1) = (ranks[str(run)] for ranks in found)
        assert torch.equal(first, second), run
        assert torch.allclose(first, weights, rtol=0, atol=1e-6), (run, float((first - weights).abs().max()))
        assert (weights - flat_weights(ENCODERS[kind]())).abs().max() > 1e-3
        assert losses_0 == losses_1 == pytest.approx(losses, rel=1e-5)  # the mean over the ranks, on each
