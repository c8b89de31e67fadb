"""Looks, plans, says what was chosen and writes it: the work of drivers.run_plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data.sources.atomic_dir import check_can_write
from data.sources.base import Source, SourceRequest
from data.sources.registry import open_source
from data.tokens.tokenizer import load_tokenizer
from drivers.cli.plan import PlanFlags
from drivers.plan.facts import CollectionFacts, MachineFacts, ModelFacts
from drivers.plan.inspect_inputs import inspect_collection, inspect_model, judged_splits
from drivers.plan.plan import Plan, Setting, check_splits, make_plan
from utils.declared.text_settings import TEXT_KEYS
from utils.errors import UserError
from utils.exchange.atomic import write_text
from utils.exchange.evaluations import TRAIN
from utils.exchange.model_files import weight_files
from utils.hub import fetched_model
from utils.run_log import say

NEW_MODEL = ModelFacts("static")


@dataclass(frozen=True)
class PlanJob:
    """What preflight resolved."""

    flag_values: Mapping[str, object]
    source: Source
    model_dir: str  # "" for a new model
    model: ModelFacts
    texts_given: Mapping[str, str | None]  # by `TEXT_KEYS`
    machine: MachineFacts
    arm_minutes: float
    is_trained: bool
    output: Path


def preflight(flags: PlanFlags) -> PlanJob:
    """UserError where the format is not known, or there is no such model with its weights and tokenizer."""
    if flags.evaluate and not flags.model_name_or_path:
        raise UserError("nothing to evaluate: give the model by --model_name_or_path")
    output = Path(flags.output)
    check_can_write(output.parent)
    source = open_source(SourceRequest(Path(flags.data_dir)))
    check_splits(judged_splits(source), is_trained=not flags.evaluate)
    texts_given = {key: getattr(flags, key) for key in TEXT_KEYS}
    model_dir, model = "", NEW_MODEL
    if flags.model_name_or_path:
        directory = fetched_model(flags.model_name_or_path)
        model_dir, model = str(directory), inspect_model(directory, texts_given)
        weight_files(directory)
        load_tokenizer(model_dir)
    return PlanJob(
        flag_values=asdict(flags),
        source=source,
        model_dir=model_dir,
        model=model,
        texts_given=texts_given,
        machine=MachineFacts(flags.cores, flags.gpus),
        arm_minutes=flags.arm_minutes,
        is_trained=not flags.evaluate,
        output=output,
    )


def run(job: PlanJob) -> None:
    """Look at the texts, plan, and say and write it."""
    collection = inspect_collection(job.source, job.model_dir, job.model.model_type, job.texts_given)
    plan = make_plan(collection, job.model, job.machine, job.arm_minutes, job.is_trained)
    plan = {"model_type": Setting(job.model.model_type), "model": Setting(job.model_dir), **plan}
    for line in (*found_lines(collection, job.model, job.machine), *setting_lines(plan)):
        say(line)
    write_text(job.output, "".join(f"{name}\t{setting.value}\t{setting.why}\n" for name, setting in plan.items()))


def found_lines(collection: CollectionFacts, model: ModelFacts, machine: MachineFacts) -> list[str]:
    queries = ", ".join(f"{split} {count:,}" for split, count in collection.queries.items())
    lengths = collection.passage_lengths
    layers = f", {model.layers} layers of {model.width}" if model.layers else ""
    return [
        f"collection: {collection.source}, about {collection.passages:,} passages of {lengths.mean:.0f} tokens "
        f"(95% have no more than {lengths.within(0.95):,}); judged queries: {queries}"
        + (f"; {collection.positives:.1f} relevant for a train query" if TRAIN in collection.queries else ""),
        f"model: {model.model_type}{layers}",
        f"machine: {machine}",
    ]


def setting_lines(plan: Plan) -> list[str]:
    """Those with a reason."""
    return [f"{name} {setting.value}: {setting.why}" for name, setting in plan.items() if setting.why]
