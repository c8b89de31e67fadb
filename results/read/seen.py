"""Whether arms saw the same queries at the same steps, and which queries an arm had no negatives for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from results.read.arm import Arm
from utils.errors import UserError
from utils.exchange.layout import JobLayout
from utils.exchange.negatives import check_as_recorded
from utils.seen import SeenRefresh, seen_in
from utils.text_files import read_lines

LogRow = dict[str, float | str]  # a line of metrics.jsonl: "step", and what was logged there, by name
NAMED = 5  # queries, of those that an arm lacks


def logged_rows(path: Path) -> tuple[list[LogRow], int]:
    """The rows of a metrics.jsonl by step, none where there is no such file; and how many lines are no rows.

    Of two lines of one step the later one's values count.
    """
    by_step: dict[int, LogRow] = {}
    passed_over = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            known = {name: math.nan if value is None else value for name, value in row.items()}  # see `json_text`
            by_step.setdefault(int(row["step"]), {}).update(known)
        except (ValueError, KeyError, TypeError, AttributeError):
            passed_over += 1
    return [by_step[step] for step in sorted(by_step)], passed_over


def read_seen(training_dir: Path) -> tuple[SeenRefresh, ...]:
    """In the order of training; empty for a run that did not note it."""
    rows, _ = logged_rows(JobLayout(training_dir).metrics)
    return tuple(found for found in map(seen_in, rows) if found is not None)


def negatives_by_query(path: Path) -> list[tuple[int, str]]:
    """(query, its negatives as written) of each line of a refresh.

    UserError where it is no such file, or not what its record says.
    """
    check_as_recorded(path)
    try:
        lines = [line.split("\t", 3)[:3] for line in read_lines(path)]
        return [(int(query), negatives) for query, _, negatives in lines]
    except ValueError:
        raise UserError(f"{path} is not a file of negatives, expected query, positive and negatives a line") from None


def other_queries(arms: Iterable[Arm]) -> list[str]:
    """One sentence for each arm that did not see the queries of the first arm of its seed, step by step.

    It names the train queries for which one of the two had no negatives. One seed stands for all. A refresh that only
    one of the two has noted is not compared: an earlier version noted none.
    """
    first_of: dict[int | None, Arm] = {}
    warnings: dict[tuple[str, str], str] = {}
    for arm in arms:
        if arm.seen:
            first = first_of.setdefault(arm.seed, arm)
            noted = {seen.refresh: seen for seen in first.seen}
            both = [(noted[seen.refresh], seen) for seen in arm.seen if seen.refresh in noted]
            parted = [pair for pair in both if pair[0] != pair[1]]
            if parted and (first.name, arm.name) not in warnings:
                warnings[first.name, arm.name] = how_they_part(first, arm, parted, len(both))
    return list(warnings.values())


def how_they_part(first: Arm, second: Arm, parted: Sequence[tuple[SeenRefresh, SeenRefresh]], of_both: int) -> str:
    """Say where two arms saw other queries.

    Args:
        first: One arm.
        second: Another of the same seed.
        parted: What each noted of the same refresh, where that differs.
        of_both: How many refreshes both have noted.
    Returns:
        One sentence, which names train queries that one of the two had no negatives for.
    """
    counts = [
        f"{name} {seen.queries:,} different ones in {seen.triples:,} triples of refresh {seen.refresh}"
        for name, seen in zip((first.name, second.name), parted[0], strict=True)
    ]
    text = (
        f"The arms {first.name} and {second.name} (seed {first.seed}) did not train on the same queries at the same "
        f"steps, in {len(parted)} of {of_both} refreshes: {', '.join(counts)}"
    )
    mine, theirs = (queries_of(arm, seen) for arm, seen in zip((first, second), parted[0], strict=True))
    for arm, lacking in ((first, theirs - mine), (second, mine - theirs)):
        if lacking and mine and theirs:
            text += f"; {arm.name} has no negatives for {some_of(lacking)}"
    return f"{text}. They do not differ in the strategy alone."


def queries_of(arm: Arm, seen: SeenRefresh) -> set[int]:
    """Those with a negative in a refresh; empty where its file is not kept."""
    path = JobLayout(arm.ann_dir).negatives(seen.refresh)
    return {query for query, negatives in negatives_by_query(path) if negatives} if path.is_file() else set()


def some_of(queries: set[int]) -> str:
    """By their rows in the collection's train-query, which is how files of negatives name them."""
    rows = ", ".join(map(str, sorted(queries)[:NAMED]))
    more = f" and {len(queries) - NAMED:,} more" if len(queries) > NAMED else ""
    return f"train quer{'y' if len(queries) == 1 else 'ies'} {rows}{more} (rows of train-query)"
