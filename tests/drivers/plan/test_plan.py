"""drivers.plan.plan: the settings chosen for collections, models and machines of any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.plan.facts import CollectionFacts, Lengths, MachineFacts, ModelFacts
from drivers.plan.plan import FEWEST_STEPS, REFRESHES, Plan, make_plan
from utils.errors import UserError

MINILM = ModelFacts("hf", max_seq_length=256, positions=512, layers=6, width=384)
NEW = ModelFacts("static")
LAPTOP, GPU = MachineFacts(cores=2, gpus=0), MachineFacts(cores=8, gpus=1)


def lengths(*tokens: int) -> Lengths:
    return Lengths(np.sort(np.array(tokens, np.int64)))


def collection(passages: int = 5_000, tokens: int = 200, **queries: int) -> CollectionFacts:
    return CollectionFacts(
        "beir", passages, queries or {"train": 800, "test": 300}, 1.0, lengths(*[tokens] * 100), lengths(*[12] * 100)
    )


def number(plan: Plan, name: str) -> int:
    return int(plan[name].value)


facts = st.builds(
    CollectionFacts,
    st.just("beir"),
    st.integers(2, 10**8),
    st.fixed_dictionaries({"train": st.integers(1, 10**7), "test": st.integers(1, 10**4)}),
    st.floats(1, 50),
    st.lists(st.integers(1, 5_000), min_size=1).map(lambda tokens: lengths(*tokens)),
    st.lists(st.integers(1, 300), min_size=1).map(lambda tokens: lengths(*tokens)),
)
models = st.one_of(
    st.just(NEW),
    st.builds(
        ModelFacts, st.just("hf"), st.none() | st.integers(8, 8192), st.none() | st.integers(8, 8192),
        st.integers(1, 48), st.integers(8, 4096), max_query_length=st.none() | st.integers(8, 8192),
    ),
)  # fmt: skip
machines = st.builds(MachineFacts, st.integers(1, 256), st.integers(0, 8))


@given(facts, models, machines, st.floats(0.1, 1_000))
def test_every_plan_can_be_run(
    found: CollectionFacts, model: ModelFacts, machine: MachineFacts, arm_minutes: float
) -> None:
    plan = make_plan(found, model, machine, arm_minutes, is_trained=True)
    steps, window = number(plan, "max_steps"), number(plan, "steps_per_refresh")
    assert steps == REFRESHES * window >= FEWEST_STEPS
    assert 1 <= number(plan, "batch") <= found.queries["train"]
    assert 1 <= number(plan, "negative_sample") <= number(plan, "topk_training") <= found.passages
    assert 1 <= number(plan, "warmup_steps") <= steps
    for name in ("max_seq_length", "max_query_length"):
        assert 1 <= number(plan, name) <= min(getattr(model, name) or 512, model.positions or 512, 512)
    assert all("\t" not in part and "\n" not in part for s in plan.values() for part in (s.value, s.why))


def test_lengths_are_those_of_nearly_all_texts_as_far_as_the_model_goes() -> None:
    assert number(make_plan(collection(tokens=100), MINILM, LAPTOP, 15, True), "max_seq_length") == 112
    long = make_plan(collection(tokens=300), MINILM, GPU, 15, True)["max_seq_length"]
    assert (long.value, long.why) == (
        "256",
        "as long as the texts that the model was trained with; 100% of the first 100 texts are cut",
    )
    in_no_time = make_plan(collection(tokens=300), MINILM, LAPTOP, 15, True)["max_seq_length"]
    assert in_no_time.value == "128" and in_no_time.why.startswith("at 256 an arm has no time for all its steps")
    assert number(make_plan(collection(tokens=300), MINILM, LAPTOP, 60, True), "max_seq_length") == 256
    assert number(make_plan(collection(tokens=300), NEW, LAPTOP, 15, True), "max_seq_length") == 256


def test_a_gpu_and_more_time_train_for_longer() -> None:
    large = collection(passages=20_000, train=80_000, dev=1_000)
    slow, more_time, fast = (
        make_plan(large, MINILM, machine, minutes, True)
        for machine, minutes in ((LAPTOP, 15), (LAPTOP, 150), (GPU, 15))
    )
    seen = [number(plan, "max_steps") * number(plan, "batch") for plan in (slow, more_time, fast)]
    assert seen == sorted(set(seen))
    assert "would be better" in slow["max_steps"].why


def test_likely_positives_are_filtered_where_queries_have_many() -> None:
    few, many = (
        make_plan(replace(collection(), positives=positives), MINILM, LAPTOP, 15, True) for positives in (1.1, 42.7)
    )
    assert (few["max_positive_ratio"].value, many["max_positive_ratio"].value) == ("0", "0.95")


def test_training_is_no_shorter_than_the_refreshes_of_a_large_collection() -> None:
    plan = make_plan(collection(passages=100_000, train=80_000, dev=1_000), MINILM, LAPTOP, 1, True)
    assert number(plan, "max_steps") > 10 * FEWEST_STEPS


@pytest.mark.parametrize(
    ("queries", "measured", "evaluated"),
    [
        ({"train": 800, "test": 300}, "test", "test train"),
        ({"train": 800, "dev": 10, "test": 300}, "dev", "dev test train"),
        ({"test": 5, "trec2019": 5, "train": 8}, "test", "test trec2019 train"),
        ({"train": 3_000_000, "dev": 10}, "dev", "dev"),
    ],
)
def test_the_splits(queries: dict[str, int], measured: str, evaluated: str) -> None:
    plan = make_plan(collection(**queries), MINILM, LAPTOP, 15, True)
    assert (plan["dev_split"].value, plan["splits"].value) == (measured, evaluated)


def test_a_model_that_is_evaluated_as_it_is_needs_no_train_split() -> None:
    plan = make_plan(collection(test=300), MINILM, LAPTOP, 15, is_trained=False)
    assert plan["splits"].value == "test" and "max_steps" not in plan
    assert make_plan(collection(), MINILM, LAPTOP, 15, is_trained=False)["splits"].value == "test"
    with pytest.raises(UserError, match=r"no train split .*has test.* --evaluate"):
        make_plan(collection(test=300), MINILM, LAPTOP, 15, is_trained=True)
    for is_trained in (True, False):
        with pytest.raises(UserError, match="no judged split other than train"):
            make_plan(collection(train=300), MINILM, LAPTOP, 15, is_trained)
