"""Compares arms over seeds: tables, tests of every pair, what can be concluded. `results.report` writes it.

``summary.json`` is ``{"seeds", "arms": {ARM: {"mrr@10": [one per seed], "ndcg@10": […]}}, "tests": [{"a", "b",
"metric", "difference", "p", "p_holm"}], …}``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from results.page.markdown import Section, align, columns, picture
from results.page.sections import common_sections
from results.plots.by_rank import by_rank_of_arm
from results.plots.study import curves_of, main_figure, sweep_figure, windows_of
from results.read.evaluation import HEADINGS
from results.read.study import Study
from results.stats import holm, paired_randomisation, paired_t, seeds_interval, standard_error
from utils.ir.metrics import HEADLINE, MRR
from utils.ir.rank_buckets import MEASURED
from utils.run_log import installed_versions

ALPHA = 0.01
NOISES = 2  # times the A/A noise, below which a difference is not called one
WITHIN_NOISE, APART_NOT = "within the A/A noise", "cannot be told apart"
TEST_SEED = 7
SWEEP_FROM = 3  # windows
LONGEST_VALUE = 16  # characters of a setting
PICTURES = ("study.png", "sweep.png")  # that there may be


@dataclass(frozen=True)
class PairTest:
    """``difference`` is a's mean less b's. ``p_holm`` is corrected over all pairs of the metric."""

    a: str
    b: str
    metric: str
    difference: float
    p: float
    p_holm: float
    p_seeds: float | None  # of a paired t test over the seeds, not corrected


def compare(study: Study, rng: np.random.Generator) -> list[PairTest]:
    """Every pair in every metric, on each query's mean over the seeds."""
    tests, pairs = [], list(itertools.combinations(study.arms, 2))
    for metric in HEADLINE:
        means = {name: np.mean([run.by_query[metric] for run in runs], axis=0) for name, runs in study.arms.items()}
        # So many that the smallest p, corrected for all pairs, is well below ALPHA.
        resamples = math.ceil(20 * len(pairs) / ALPHA)
        differences_QP = np.stack([means[a] - means[b] for a, b in pairs], axis=1) if pairs else np.zeros((1, 0))
        p_values = paired_randomisation(differences_QP, rng, resamples).tolist()
        for (a, b), p, p_holm in zip(pairs, p_values, holm(p_values), strict=True):
            p_seeds = paired_t(study.finals(a, metric), study.finals(b, metric))
            tests.append(PairTest(a, b, metric, float((means[a] - means[b]).mean()), p, p_holm, p_seeds))
    return tests


def is_aa(study: Study, test: PairTest) -> bool:
    return study.strategies[test.a] == study.strategies[test.b]


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


def best_of(study: Study, name: str) -> tuple[int, float]:
    """Step and mean over the seeds of the best checkpoint measured, the last one included."""
    steps, values_SX = curves_of(study, name)
    best = int(values_SX.mean(0).argmax())
    return int(steps[best]), float(values_SX.mean(0)[best])


def finals_rows(study: Study) -> list[list[str]]:
    """A heading and the arms, the best first: name, strategy, and each metric's mean with its interval."""
    rows = [["arm", "strategy", *(f"{HEADINGS[metric]} (95% over seeds)" for metric in HEADLINE)]]
    for name in sorted(study.arms, key=lambda name: -study.finals(name, MRR).mean()):
        cells = []
        for metric in HEADLINE:
            interval = seeds_interval(study.finals(name, metric))
            width = f" ({interval.low:.4f} to {interval.high:.4f})" if len(study.seeds) > 1 else ""
            cells.append(f"{interval.mean:.4f}{width}")
        rows.append([name, study.strategies[name], *cells])
    return rows


def short_table(study: Study) -> str:
    """What a terminal shows of a study."""
    return columns(finals_rows(study))


def arms_table(study: Study) -> str:
    heading, *finals = finals_rows(study)
    rows = [[*heading, f"best {HEADINGS[MRR]}", "at step", "seconds"]]
    for name, strategy, *cells in finals:
        step, best = best_of(study, name)
        seconds = np.mean([run.arm.seconds for run in study.arms[name]])
        rows.append([name, f"`{strategy}`", *cells, f"{best:.4f}", f"{step:,}", f"{seconds:.0f}"])
    return align(rows)


def verdict(study: Study, test: PairTest) -> str:
    """What a test supports: by the queries, and against the noise between seeds where that is known."""
    if test.p_holm >= ALPHA:
        return APART_NOT
    noise = noise_of(study, test.metric)
    if noise is not None and abs(test.difference) < NOISES * noise:
        return WITHIN_NOISE
    better, worse = (test.a, test.b) if test.difference > 0 else (test.b, test.a)
    return f"{better} better than {worse}"


def named(study: Study, test: PairTest) -> str:
    return f"{test.a} - {test.b}" + (" (A/A)" if is_aa(study, test) else "")


def tests_table(study: Study, tests: list[PairTest], metric: str) -> str:
    noise = noise_of(study, metric)
    rows = [["pair", "difference", "of the A/A noise", "p", "p (Holm)", "p over seeds", "conclusion"]]
    for test in sorted((t for t in tests if t.metric == metric), key=lambda t: t.p_holm):
        seeds = f"{test.p_seeds:.3g}" if test.p_seeds is not None else "n/a"
        share = f"{abs(test.difference) / noise:.1f}x" if noise else "n/a"
        numbers = [f"{test.difference:+.4f}", share, f"{test.p:.4g}", f"{test.p_holm:.4g}", seeds]
        rows.append([named(study, test), *numbers, verdict(study, test)])
    return align(rows)


def conclusions(study: Study, tests: list[PairTest]) -> list[str]:
    """What the first metric's tests support, as list items, and what they do not."""
    found = [test for test in tests if test.metric == MRR]
    lines = []
    for name in study.arms:
        beaten = [test for test in found if verdict(study, test).startswith(f"{name} better than ")]
        if beaten:
            others = ", ".join(
                f"{test.b if test.a == name else test.a} (by {abs(test.difference):.4f}, p {test.p_holm:.2g})"
                for test in sorted(beaten, key=lambda test: -abs(test.difference))
            )
            lines.append(f"- {name} is better than {others}.")
    for outcome, words in ((WITHIN_NOISE, f"Within {NOISES} times the A/A noise"), (APART_NOT, "Cannot be told apart")):
        pairs = [named(study, test) for test in found if verdict(study, test) == outcome]
        lines += [f"- {words}: {', '.join(pairs)}."] if pairs else []
    return [*lines, *caveats(study, found)]


def sentence(study: Study, tests: list[PairTest]) -> str:
    """The conclusions in one: which arms are better than which, the best first."""
    found = [test for test in tests if test.metric == MRR]
    if not found:
        return "There is one arm: nothing is compared."
    apart = {verdict(study, test) for test in found} - {WITHIN_NOISE, APART_NOT}
    ordered = [name for name, *_ in finals_rows(study)[1:]]
    worse = {name: [other for other in ordered if f"{name} better than {other}" in apart] for name in ordered}
    groups = itertools.groupby((name for name in ordered if worse[name]), key=lambda name: worse[name])
    clauses = [f"{listed(list(names), 'is', 'are')} better than {listed(others)}" for others, names in groups]
    rest = len(found) - len(apart)
    clauses += [f"{rest} of {len(found)} pairs cannot be told apart"] if rest else []
    cautions = [caution.removeprefix("- **Warning:** ").rstrip(".") for caution in caveats(study, found)]
    return f"By {HEADINGS[MRR]}, {'; '.join(clauses)}{''.join(f' ({caution})' for caution in cautions)}."


def listed(names: list[str], one: str = "", several: str = "") -> str:
    """``a, b and c``, and the verb that goes with so many."""
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{text} {one if len(names) == 1 else several}".rstrip()


def caveats(study: Study, found: list[PairTest]) -> list[str]:
    """Why less than that can be concluded."""
    if any(is_aa(study, test) and test.p_holm < ALPHA for test in found):
        return ["- **Warning:** an A/A pair is told apart: differences of that size are noise between seeds."]
    if len(study.seeds) == 1:
        return ["- **Warning:** one seed: this is said of these models, not of their strategies."]
    if not any(is_aa(study, test) for test in found):
        return [
            "- **Warning:** no A/A arm (one strategy twice, under other seeds): how far equal arms differ is not known."
        ]
    return []


def how_tested(study: Study, tests: list[PairTest]) -> str:
    aa = [test for test in tests if is_aa(study, test)]
    noises = ", ".join(f"{noise_of(study, test.metric) or 0:.4f} in {HEADINGS[test.metric]}" for test in aa)
    return (
        f"Seeds: {', '.join(map(str, study.seeds))}. Intervals are Student's over the seeds. p: two-sided paired "
        f"randomisation over the {study.split} queries, each query's value being its mean over the seeds; Holm's "
        f"correction over the {len(tests) // len(HEADLINE)} pairs of a metric. One arm is called better below {ALPHA}, "
        f"and where the difference is at least {NOISES} times the A/A noise: the standard error, over the seeds, of "
        f"the difference between two arms of one strategy"
        + (f" ({noises})." if aa and len(study.seeds) > 1 else ", which is not known here.")
        + " p over seeds: a paired t test of the seeds' finals, not corrected."
    )


def study_sections(study: Study, tests: list[PairTest]) -> list[Section]:
    """Tables, tests and pictures of the comparison over seeds."""
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    found = [Section("What can be concluded", ["\n".join(conclusions(study, tests)) or "There is one arm."])]
    caption = (
        "Left: the mean over the seeds, and a band from the lowest to the highest. Right: each seed's final (dots), "
        "their mean and its interval."
    )
    finals = [arms_table(study), picture("study.png", caption)]
    found.append(Section(f"The arms over {seeds}", finals, {"study.png": main_figure(study)}))
    if len(windows_of(study)) >= SWEEP_FROM:
        caption = (
            "Arms that take one window of ranks each: final quality (mean over the seeds, band from the lowest to the "
            "highest) and the mean gradient norm of a triple, against the middle of the window."
        )
        blocks = [picture("sweep.png", caption)]
        found.append(Section("Final quality against rank", blocks, {"sweep.png": sweep_figure(study)}))
    blocks = [how_tested(study, tests)]
    for metric in HEADLINE:
        blocks += [f"### By {HEADINGS[metric]}", tests_table(study, tests, metric)]
    found.append(Section("Every pair", blocks))
    return found


def shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def what_was_run(study: Study) -> Section:
    """What all arms share; seed and strategy are in the tables."""
    first = next(iter(study.arms.values()))[0]
    rows = [["setting", "trainer", "generator"]]
    for name in sorted({name for name, _ in first.config}):
        values = [first.config.get((name, program), "") for program in ("trainer", "generator")]
        rows.append([name, *map(shortened, values)])
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    blocks = [
        f"Each arm trained for {first.arm.steps:,} steps and used {first.arm.refreshes:,} refreshes. All share:",
        align(rows),
        f"Trained with commit {', '.join(study.commits)}; compared with {versions}.",
    ]
    return Section("What was run", blocks)


def sections_of(study: Study, tests: list[PairTest], directory: Path) -> list[Section]:
    """Those of the comparison, then those that any report has."""
    common = common_sections(study.by_arm, study.measures, directory)
    return [*study_sections(study, tests), *common, what_was_run(study)]


def study_command(study: Study) -> str:
    offsets = {name: runs[0].own_seed - runs[0].seed for name, runs in study.arms.items()}
    words = [
        f"{name}={strategy}" + (f"@{offsets[name]}" if offsets[name] else "")
        for name, strategy in study.strategies.items()
    ]
    return f'bash commands/study.sh --seeds "{" ".join(map(str, study.seeds))}" --arms "{" ".join(words)}"'


def summary_of(study: Study, tests: list[PairTest], command: str) -> dict[str, object]:
    measures = study.measures
    return {
        "seeds": study.seeds,
        "arms": {name: {metric: study.finals(name, metric).tolist() for metric in HEADLINE} for name in study.arms},
        "strategies": study.strategies,
        "tests": [vars(test) for test in tests],
        "aa_noise": {metric: noise_of(study, metric) for metric in HEADLINE},
        "by_rank": {name: {what: by_rank_of_arm(runs, what) for what in MEASURED} for name, runs in measures.items()},
        "seen": {name: [[asdict(one) for one in arm.seen] for arm in arms] for name, arms in study.by_arm.items()},
        "warnings": study.warnings,
        "seconds": {name: [run.arm.seconds for run in runs] for name, runs in study.arms.items()},
        "versions": {**installed_versions(), "git": study.commits},
        "command": command,
    }
