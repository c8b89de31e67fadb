"""Compares the arms of a study over its seeds: tables, tests of every pair, pictures.

    python -m results.study --run_dir RUN --output DIR --seeds 1 2 3 --arms top bottom again

RUN is what commands/study.sh leaves: ``seed-S/ARM/`` with an arm in each. ``summary.json`` is ``{"seeds", "arms": {ARM:
{"mrr@10": [one per seed], "ndcg@10": […]}}, "tests": [{"a", "b", "metric", "difference", "p", "p_holm"}], …}``. Arms
that differ in more than strategy and seed are not compared.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from results.plots import save
from results.report import align, publish
from results.significance import holm, paired_randomisation, paired_t, seeds_interval, standard_error
from results.study_arms import COMPARED, Study, read_study
from results.study_figures import figures
from utils.errors import UserError, run_program
from utils.flags import ProgramFlags, flag, flags_json, parse_flags
from utils.publishing import write_json
from utils.run_log import git_state, installed_versions, say

ALPHA = 0.01
TEST_SEED = 7


@dataclass(frozen=True)
class Test:
    """``difference`` is a's mean less b's. ``p_holm`` is corrected over all pairs of the metric."""

    a: str
    b: str
    metric: str
    difference: float
    p: float
    p_holm: float
    p_seeds: float | None  # of a paired t test over the seeds, not corrected


def compare(study: Study, rng: np.random.Generator) -> list[Test]:
    """Every pair in every metric, on each query's mean over the seeds."""
    tests, pairs = [], list(itertools.combinations(study.arms, 2))
    for metric in COMPARED:
        means = {name: np.mean([run.by_query[metric] for run in runs], axis=0) for name, runs in study.arms.items()}
        # So many that the smallest p, corrected for all pairs, is well below ALPHA.
        resamples = math.ceil(20 * len(pairs) / ALPHA)
        differences_QP = np.stack([means[a] - means[b] for a, b in pairs], axis=1) if pairs else np.zeros((1, 0))
        p_values = paired_randomisation(differences_QP, rng, resamples).tolist()
        for (a, b), p, p_holm in zip(pairs, p_values, holm(p_values), strict=True):
            p_seeds = paired_t(study.finals(a, metric), study.finals(b, metric))
            tests.append(Test(a, b, metric, float((means[a] - means[b]).mean()), p, p_holm, p_seeds))
    return tests


def noise_of(study: Study, metric: str) -> float | None:
    """How far two arms of one strategy lie apart by chance, in the mean over so many seeds as there are.

    The standard error of the difference over the seeds, the largest of all A/A pairs; None where it cannot be known.
    """
    if len(study.seeds) < 2:
        return None
    pairs = [(a, b) for a, b in itertools.combinations(study.arms, 2) if study.strategies[a] == study.strategies[b]]
    found = [standard_error(study.finals(a, metric) - study.finals(b, metric)) for a, b in pairs]
    return max(found, default=None)


# Telling


def arms_table(study: Study) -> str:
    rows = [["arm", "strategy", *(f"{metric} (95% over seeds)" for metric in COMPARED), "seconds an arm"]]
    for name in sorted(study.arms, key=lambda name: -study.finals(name, COMPARED[0]).mean()):
        cells = []
        for metric in COMPARED:
            interval = seeds_interval(study.finals(name, metric))
            width = f" ({interval.low:.4f} to {interval.high:.4f})" if len(study.seeds) > 1 else ""
            cells.append(f"{interval.mean:.4f}{width}")
        seconds = np.mean([run.arm.seconds for run in study.arms[name]])
        rows.append([name, f"`{study.strategies[name]}`", *cells, f"{seconds:.0f}"])
    return align(rows)


def tests_table(study: Study, tests: list[Test], metric: str) -> str:
    noise = noise_of(study, metric)
    rows = [["pair", "difference", "of the A/A noise", "p", "p (Holm)", "p over seeds", "conclusion"]]
    for test in sorted((t for t in tests if t.metric == metric), key=lambda t: t.p_holm):
        better, worse = (test.a, test.b) if test.difference > 0 else (test.b, test.a)
        told = f"{better} better than {worse}" if test.p_holm < ALPHA else "cannot be told apart"
        pair = f"{test.a} - {test.b}" + (" (A/A)" if study.strategies[test.a] == study.strategies[test.b] else "")
        seeds = f"{test.p_seeds:.3g}" if test.p_seeds is not None else "n/a"
        share = f"{abs(test.difference) / noise:.1f}x" if noise else "n/a"
        rows.append([pair, f"{test.difference:+.4f}", share, f"{test.p:.4g}", f"{test.p_holm:.4g}", seeds, told])
    return align(rows)


def markdown(study: Study, tests: list[Test], pictures: list[str], command: str) -> str:
    aa = [test for test in tests if study.strategies[test.a] == study.strategies[test.b]]
    blocks = ["# What the rank of the negatives does", f"Made by `{command}`."]
    blocks += [f"**Warning:** {warning}" for warning in study.warnings]
    blocks += [arms_table(study)]
    for metric in COMPARED:
        blocks += [f"Pairs by {metric}:", tests_table(study, tests, metric)]
    aa_told = "; ".join(f"{t.a} and {t.b} in {t.metric}: p {t.p:.3g}" for t in aa)
    blocks.append(
        f"Seeds: {', '.join(map(str, study.seeds))}. Intervals are Student's over the seeds. p: two-sided paired "
        "randomisation over the dev queries, each query's value being its mean over the seeds; Holm's correction over "
        f"the {len(tests) // len(COMPARED)} pairs of a metric; a pair is told apart below {ALPHA}. "
        "p over seeds: a paired t test of the seeds' finals, not corrected. The A/A noise is the standard error, over "
        "the seeds, of the difference between two arms of one strategy"
        + (f" ({aa_told})." if aa else "; there is no such pair here.")
    )
    blocks += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    return "\n\n".join(blocks) + "\n"


def summary_of(study: Study, tests: list[Test], command: str) -> dict[str, Any]:
    return {
        "seeds": study.seeds,
        "arms": {name: {metric: study.finals(name, metric).tolist() for metric in COMPARED} for name in study.arms},
        "strategies": study.strategies,
        "tests": [vars(test) for test in tests],
        "aa_noise": {metric: noise_of(study, metric) for metric in COMPARED},
        "by_rank": {name: study.by_rank(name) for name in study.arms},
        "warnings": study.warnings,
        "seconds": {name: [run.arm.seconds for run in runs] for name, runs in study.arms.items()},
        "versions": {**installed_versions(), "git": git_state()["commit"]},
        "command": command,
    }


@dataclass(frozen=True, kw_only=True)
class StudyFlags(ProgramFlags):
    """Tables, tests and pictures of a study's arms over its seeds."""

    run_dir: str = flag(help="what commands/study.sh wrote")
    output: str = flag(help="where summary.json, summary.md and the pictures go")
    seeds: list[int] = flag(help="of the arms to compare")  # noqa: RUF009
    arms: list[str] = flag(help="their names")  # noqa: RUF009


def main() -> None:
    flags = parse_flags(StudyFlags, "study")
    if flags.dry_run:
        sys.stdout.write(flags_json(flags) + "\n")
        return
    if len(set(flags.arms)) < len(flags.arms) or len(set(flags.seeds)) < len(flags.seeds):
        raise UserError(f"--arms {flags.arms} --seeds {flags.seeds}: one is named twice; name each once")
    study = read_study(Path(flags.run_dir), flags.seeds, flags.arms)
    tests = compare(study, np.random.default_rng(TEST_SEED))
    offsets = {name: runs[0].own_seed - runs[0].seed for name, runs in study.arms.items()}
    words = [
        f"{name}={strategy}" + (f"@{offsets[name]}" if offsets[name] else "")
        for name, strategy in study.strategies.items()
    ]
    command = f'bash commands/study.sh --seeds "{" ".join(map(str, flags.seeds))}" --arms "{" ".join(words)}"'
    output = Path(flags.output)
    output.mkdir(parents=True, exist_ok=True)
    pictures = figures(study)
    for name, figure in pictures.items():
        publish(output / name, functools.partial(save, figure))
    text = markdown(study, tests, list(pictures), command)
    publish(output / "summary.md", lambda staged: staged.write_text(text, encoding="utf-8"))
    write_json(output / "summary.json", summary_of(study, tests, command))
    for warning in study.warnings:
        say(f"warning: {warning}", sys.stderr)
    say(f"{arms_table(study)}\nwrote {output / 'summary.md'}, summary.json and the pictures beside it")


if __name__ == "__main__":
    run_program("study", main)
