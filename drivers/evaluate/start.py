"""What run_eval does: it evaluates a model, or runs that are given, for which torch is not loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivers.cli.evaluate import EvalFlags

if TYPE_CHECKING:
    from drivers.evaluate.evaluator import Evaluation
    from drivers.evaluate.given_runs import RunsJob


def preflight(flags: EvalFlags) -> Evaluation | RunsJob:
    """UserError for anything that would fail later."""
    if flags.run:
        from drivers.evaluate import given_runs

        return given_runs.preflight(flags)
    from drivers.evaluate import evaluator

    return evaluator.preflight(flags)


def run(job: Evaluation | RunsJob) -> None:
    from drivers.evaluate import given_runs

    if isinstance(job, given_runs.RunsJob):
        given_runs.run(job)
    else:
        from drivers.evaluate import evaluator

        evaluator.run(job)
