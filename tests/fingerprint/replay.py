"""An async run, recorded once; every later commit replays and resumes it. What was when depended on who was quicker."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.fingerprint.loop import ASYNC, SELECTION, TRAINING, WARMUP_STEPS, Loop, batch, common

RECORDED = Path(__file__).resolve().parent / "recorded"
STEPS, SAVE_STEPS = 900, 300


def training(loop: Loop, output: Path, ann_dir: Path, *more: object) -> tuple[object, ...]:
    """Slow enough for a generator to keep up with: three checkpoints, so that retention removes none."""
    places = ("--ann_dir", ann_dir, "--output_dir", output, "--model_name_or_path", loop.path("recorded", "initial"))
    steps = ("--max_steps", STEPS, "--save_steps", SAVE_STEPS, "--logging_steps", 10)
    return ("drivers.run_ann", *common(loop, "static"), *places, *TRAINING, *steps, *ASYNC, *more)


def generation(loop: Loop, output: Path, training_dir: Path, *more: object) -> tuple[object, ...]:
    start = ("--init_model_dir", loop.path("recorded", "initial"))
    places = ("--training_dir", training_dir, "--output_dir", output, *start)
    return ("drivers.run_ann_data_gen", *common(loop, "static"), *places, *SELECTION, *ASYNC, *more)


def record(loop: Loop) -> None:
    """Write `RECORDED`: the warmup's model, and what an async run from it has left. Needs `static_warmup`.

    Of the run: its journal, its refreshes, and its first checkpoint, to resume from.
    """
    kept = loop.path("recorded")
    initial, checkpoints, ann_data = (kept / name for name in ("initial", "checkpoints", "ann_data"))
    initial.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(loop.path("warmup", f"checkpoint-{WARMUP_STEPS}", name), initial)
    trained, made = loop.path("async", "checkpoints"), loop.path("async", "ann_data")
    commands = {
        loop.path("async", "generator.out"): generation(loop, made, trained),
        loop.path("async", "trainer.out"): training(loop, trained, made, *batch(1)),
    }
    loop.programs.run_together(commands)
    first = f"checkpoint-{SAVE_STEPS}"
    shutil.copytree(trained / first, checkpoints / first)
    for name in ("RUN.json", "journal.jsonl", "metrics.jsonl"):
        shutil.copy(trained / name, checkpoints)
    ann_data.mkdir()
    for path in (*made.glob("ann_ndcg_*"), *made.glob("ann_training_data_*")):
        shutil.copy(path, ann_data)
    shutil.rmtree(RECORDED, ignore_errors=True)
    shutil.copytree(kept, RECORDED)


def replays(loop: Loop) -> None:
    """The recorded run's training by one process and by two, and its refreshes, each from the same step as then."""
    kept = Path(shutil.copytree(RECORDED, loop.path("recorded")))
    for processes in (1, 2):
        place = loop.path("replay", processes)
        replay = ("--replay", kept / "checkpoints" / "journal.jsonl", *batch(processes))
        command = training(loop, place / "checkpoints", kept / "ann_data", *replay)
        loop.run(f"replay/{processes}/trainer", *command, processes=processes)
    shown, made = loop.path("replay", "shown"), loop.path("replay", "ann_data")
    shown.mkdir()
    for number in range(len(list((kept / "ann_data").glob("ann_ndcg_*")))):
        step = json.loads((kept / "ann_data" / f"ann_ndcg_{number}").read_text())["step"]
        if step > 0:  # of what a trainer has published, the generator takes the newest
            shutil.copytree(loop.path("replay", 1, "checkpoints", f"checkpoint-{step}"), shown / f"checkpoint-{step}")
        command = generation(loop, made, shown, "--end_output_num", number)
        loop.run(f"replay/generator-{number}", *command)
    shutil.rmtree(shown)


def resumed(loop: Loop) -> None:
    """The recorded run resumed from its first checkpoint, with all of its refreshes there. Needs `replays`."""
    kept, place = loop.path("recorded"), loop.path("resumed")
    shutil.copytree(kept / "checkpoints", place / "checkpoints")
    loop.run("resumed/trainer", *training(loop, place / "checkpoints", kept / "ann_data", *batch(1)))
