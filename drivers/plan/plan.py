"""Chooses the lengths, the batch and the steps of a run from what was found, and says why; reads no file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from drivers.plan.facts import CollectionFacts, Lengths, MachineFacts, ModelFacts
from utils.errors import UserError
from utils.exchange.evaluations import DEV, TRAIN

COVERED = 0.95  # of the texts fit into the lengths whole, where a model is trained
LENGTH_STEP = 16  # lengths are multiples of it
LONGEST_PASSAGE, LONGEST_QUERY, SHORTEST = 512, 128, 32
LONGEST_WITHOUT_MODEL = 256
SHORTENED = 128  # tokens of a passage where an arm has no time for more
REFRESHES = 3  # that an arm trains on
LARGEST_TOPK, LARGEST_SAMPLE = 200, 20
FEWEST_STEPS = 40
# From so many known positives of a query on, others are likely that nobody has judged.
MANY_POSITIVES, MAX_POSITIVE_RATIO = 3, 0.95
MOST_PAIRS = 10**10  # of a train query and a passage: beyond, the train queries are not evaluated


@dataclass(frozen=True)
class Recipe:
    """How a model of a kind is trained: for ``epochs`` of the train queries, but not longer than ``most_steps``."""

    batch: int
    epochs: float
    most_steps: int
    learning_rate: float
    loss: str

    def steps(self, queries: int, batch: int) -> int:
        return min(self.most_steps, max(FEWEST_STEPS, round(self.epochs * queries / batch)))


@dataclass(frozen=True)
class Training:
    """The recipes of a kind of model: of the warmup on BM25's negatives, and of an arm."""

    warmup: Recipe
    arm: Recipe


FINE_TUNED = Training(
    warmup=Recipe(batch=32, epochs=1, most_steps=500, learning_rate=5e-5, loss="in_batch"),
    arm=Recipe(batch=32, epochs=2, most_steps=5_000, learning_rate=1e-4, loss="in_batch"),
)
# As the quickstart's own collection is trained on.
FROM_NOTHING = Training(
    warmup=Recipe(batch=128, epochs=40, most_steps=250, learning_rate=3e-3, loss="in_batch"),
    arm=Recipe(batch=128, epochs=40, most_steps=1_200, learning_rate=1e-3, loss="pairwise"),
)
GPU_BATCHES = 2  # a GPU's batch, in those of a CPU, of a model with layers


@dataclass(frozen=True)
class Setting:
    """``value`` as a script hands it on; ``why`` in words, "" where there is nothing to say."""

    value: str
    why: str = ""


Plan = dict[str, Setting]


def make_plan(
    collection: CollectionFacts, model: ModelFacts, machine: MachineFacts, arm_minutes: float, is_trained: bool
) -> Plan:
    """The settings of a run by name.

    Args:
        collection, model, machine: What was found.
        arm_minutes: How long an arm may take, about.
        is_trained: False where the model is evaluated as it is.
    Raises:
        UserError: there is no split to measure on, or none to train on.
    """
    plan = length_settings(collection, model, COVERED if is_trained else 1) | split_settings(collection, is_trained)
    if not is_trained:
        return plan
    plan |= shorter_passages(collection, model, machine, plan, arm_minutes)
    training = training_settings(collection, model, machine, lengths_in(plan), arm_minutes)
    return plan | candidate_settings(collection) | training


# Lengths and splits


def length_settings(collection: CollectionFacts, model: ModelFacts, covered: float) -> Plan:
    """``covered``: the share of the texts that are to fit whole, as far as the model goes."""
    passages = chosen_length(collection.passage_lengths, model, model.max_seq_length, LONGEST_PASSAGE, covered)
    queries = chosen_length(collection.query_lengths, model, model.max_query_length, LONGEST_QUERY, covered)
    if model.query_tokens:
        queries = Setting(str(model.query_tokens), "its text profile makes queries of so many")
    return {"max_seq_length": passages, "max_query_length": queries}


def chosen_length(lengths: Lengths, model: ModelFacts, trained: int | None, longest: int, covered: float) -> Setting:
    """How many tokens of a text are kept.

    Args:
        lengths: Of the texts.
        model, trained: Which has a longest text itself; the length that it was trained with, None if unknown.
        longest: What is taken by itself at most.
        covered: The share of the texts that are to fit whole.
    """
    needed = max(SHORTEST, -(-lengths.within(covered) // LENGTH_STEP) * LENGTH_STEP)
    limits = {
        "as long as the texts that the model was trained with": trained,
        "as many as the model has positions for": model.positions,
        "the most that a plan chooses": longest if model.layers else min(longest, LONGEST_WITHOUT_MODEL),
    }
    limit, reason = min((value, words) for words, value in limits.items() if value is not None)
    first = f"of the first {len(lengths.tokens_T):,} texts"
    if needed <= limit:
        return Setting(str(needed), f"{1 - lengths.share_above(needed):.0%} {first} fit whole")
    return Setting(str(limit), f"{reason}; {lengths.share_above(limit):.0%} {first} are cut")


def shorter_passages(
    collection: CollectionFacts, model: ModelFacts, machine: MachineFacts, plan: Plan, arm_minutes: float
) -> Plan:
    """Passages cut shorter, where at their length an arm has no time for all its steps; else nothing.

    Args:
        collection, model, machine: What was found.
        plan: With the lengths as they would be.
        arm_minutes: How long an arm may take.
    """
    lengths = lengths_in(plan)
    schedule = schedule_of(collection, model, machine, lengths, arm_minutes)
    is_in_time = schedule.steps >= schedule.wanted and schedule.minutes <= arm_minutes
    if lengths["max_seq_length"] <= SHORTENED or is_in_time:
        return {}
    cut = collection.passage_lengths.share_above(SHORTENED)
    why = f"at {lengths['max_seq_length']} an arm has no time for all its steps; {cut:.0%} of the texts are cut"
    return {"max_seq_length": Setting(str(SHORTENED), why)}


def lengths_in(plan: Plan) -> dict[str, int]:
    return {name: int(plan[name].value) for name in ("max_seq_length", "max_query_length")}


def check_splits(judged: Collection[str], is_trained: bool) -> None:
    """UserError where no split can be measured on, or none trained on. ``judged`` are the splits that have qrels."""
    others = [split for split in judged if split != TRAIN]
    if not others:
        raise UserError(
            "the collection has no judged split other than train, expected one to measure on: add its qrels"
        )
    if is_trained and TRAIN not in judged:
        raise UserError(
            f"the collection has no train split (it has {', '.join(others)}), expected one to train on: "
            "add its qrels, or pass --evaluate to evaluate a model as it is"
        )


def split_settings(collection: CollectionFacts, is_trained: bool) -> Plan:
    """The split that is measured while training, and all that are evaluated: it first, train last."""
    check_splits(collection.queries, is_trained)
    others = [split for split in collection.queries if split != TRAIN]
    measured = DEV if DEV in others else others[0]
    evaluated = [measured, *(split for split in others if split != measured)]
    why = f"{collection.queries[measured]:,} queries"
    if is_trained and collection.queries[TRAIN] * collection.passages <= MOST_PAIRS:
        evaluated.append(TRAIN)
    elif is_trained:
        why += f"; the {collection.queries[TRAIN]:,} train queries are too many to be evaluated"
    return {"dev_split": Setting(measured, why), "splits": Setting(" ".join(evaluated))}


# Training


def candidate_settings(collection: CollectionFacts) -> Plan:
    """How many candidates a query has, and how many of them become negatives."""
    topk = min(LARGEST_TOPK, max(1, collection.passages // 2))
    ratio = Setting("0")
    if collection.positives >= MANY_POSITIVES:
        why = f"a train query has {collection.positives:.1f} known positives, so others are likely that nobody judged"
        ratio = Setting(f"{MAX_POSITIVE_RATIO:g}", why)
    return {
        "topk_training": Setting(str(topk)),
        "negative_sample": Setting(str(min(LARGEST_SAMPLE, topk))),
        "max_positive_ratio": ratio,
    }


@dataclass(frozen=True)
class Costs:
    """Seconds, estimated: of encoding the collection once, and of a training step of one query."""

    encode: float
    query: float


def costs_of(
    collection: CollectionFacts, model: ModelFacts, machine: MachineFacts, lengths: Mapping[str, int]
) -> Costs:
    """What encoding and training take: a query is trained on next to a positive and a negative, backwards as well.

    Args:
        collection, model, machine: What was found.
        lengths: The tokens kept of a passage and of a query.
    """
    passage = collection.passage_lengths.cut_mean(lengths["max_seq_length"])
    query = collection.query_lengths.cut_mean(lengths["max_query_length"])
    encode = model.flops_of(collection.passages * passage, passage)
    trained = 3 * (model.flops_of(2 * passage, passage) + model.flops_of(query, query))
    return Costs(encode / machine.flops, trained / machine.flops)


@dataclass(frozen=True)
class Schedule:
    """An arm's batch and steps, a multiple of REFRESHES; how many were wanted; and what it takes, in minutes."""

    batch: int
    steps: int
    wanted: int
    minutes: float


def schedule_of(
    collection: CollectionFacts,
    model: ModelFacts,
    machine: MachineFacts,
    lengths: Mapping[str, int],
    arm_minutes: float,
) -> Schedule:
    """As long as the recipe has it, where there is the time.

    Args:
        collection, model, machine: What was found.
        lengths: The tokens kept of a passage and of a query.
        arm_minutes: How long an arm may take; its training is never shorter than its refreshes.
    """
    recipe, queries = training_of(model).arm, collection.queries[TRAIN]
    batch = min(batch_factor(model, machine) * recipe.batch, queries)
    costs = costs_of(collection, model, machine, lengths)
    refreshing, step = REFRESHES * costs.encode, batch * costs.query
    wanted = recipe.steps(queries, batch)
    affordable = int(max(60 * arm_minutes - refreshing, refreshing) / step) if step else wanted
    steps = REFRESHES * -(-max(FEWEST_STEPS, min(wanted, affordable)) // REFRESHES)
    return Schedule(batch, steps, wanted, (refreshing + steps * step + costs.encode) / 60)


def training_of(model: ModelFacts) -> Training:
    return FINE_TUNED if model.layers else FROM_NOTHING


def batch_factor(model: ModelFacts, machine: MachineFacts) -> int:
    return GPU_BATCHES if machine.gpus and model.layers else 1


def training_settings(
    collection: CollectionFacts,
    model: ModelFacts,
    machine: MachineFacts,
    lengths: Mapping[str, int],
    arm_minutes: float,
) -> Plan:
    """Batch, steps, learning rate, and about how long an arm takes.

    Args: those of `schedule_of`.
    """
    training, queries = training_of(model), collection.queries[TRAIN]
    found = schedule_of(collection, model, machine, lengths, arm_minutes)
    why = f"{found.steps * found.batch / queries:.1f} epochs of {queries:,} train queries"
    why += f"; no time for more, {found.wanted:,} would be better" if found.steps < found.wanted else ""
    return {
        "batch": Setting(str(found.batch), f"different queries of a step; on {machine}"),
        "max_steps": Setting(str(found.steps), why),
        "steps_per_refresh": Setting(str(found.steps // REFRESHES), f"{REFRESHES} refreshes"),
        "warmup_steps": Setting(str(-(-found.steps // 10)), "of the learning rate"),
        "learning_rate": Setting(f"{training.arm.learning_rate:g}"),
        "loss": Setting(training.arm.loss),
        **first_settings(training.warmup, queries, batch_factor(model, machine)),
        "minutes": Setting(f"{max(1, found.minutes):.0f}", f"estimated for an arm and its evaluation, on {machine}"),
    }


def first_settings(recipe: Recipe, queries: int, factor: int) -> Plan:
    """Those of the warmup on BM25's negatives.

    Args:
        recipe: Of the kind of model.
        queries: Train queries.
        factor: Of the batch.
    """
    batch = min(factor * recipe.batch, queries)
    return {
        "first_steps": Setting(str(recipe.steps(queries, batch))),
        "first_batch": Setting(str(batch)),
        "first_learning_rate": Setting(f"{recipe.learning_rate:g}"),
        "first_loss": Setting(recipe.loss),
    }
