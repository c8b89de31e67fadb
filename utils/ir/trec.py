"""TREC run files: ``qid Q0 pid rank score tag``, and MS MARCO's top1000 files, in original ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.exchange.atomic import publish_file
from utils.text_files import columns_of, numbered_lines

LARGEST_PLACE = int(np.finfo(np.float32).max.view(np.int32))


def write_run(
    path: Path,
    query_ids_Q: Sequence[str],
    passage_ids: Sequence[str],
    passages_QK: np.ndarray,
    scores_QK: np.ndarray,
    tag: str,
) -> None:
    """Write the lists whole or not at all.

    Columns are separated by blanks as everywhere, by tabs where an id itself holds a blank. The scores are those of
    `strictly_descending`: evaluators sort by them, and break ties by the passage's id.

    Args:
        path: the file.
        query_ids_Q: the original ids of the queries.
        passage_ids: the original ids of all passages.
        passages_QK: int64, places in ``passage_ids``, best first, -1 after a list's end.
        scores_QK: float, of these passages, descending.
        tag: the run's name, the last column.
    """
    separator = "\t" if any(" " in an_id for ids in (query_ids_Q, passage_ids) for an_id in ids) else " "

    def write(staged: Path) -> None:
        with staged.open("w", encoding="utf-8") as file:
            for query_id, passages_K, scores_K in zip(query_ids_Q, passages_QK, scores_QK, strict=True):
                held_K = np.logical_and.accumulate(passages_K >= 0)
                scores = strictly_descending(scores_K[held_K]).tolist()
                for rank, (passage, score) in enumerate(zip(passages_K[held_K].tolist(), scores, strict=True), 1):
                    columns = (query_id, "Q0", passage_ids[passage], str(rank), f"{score:.9g}", tag)
                    file.write(separator.join(columns) + "\n")

    publish_file(path, write)


def strictly_descending(scores_K: np.ndarray) -> np.ndarray:
    """The float32 numbers [K] nearest to a ranking's scores, each below the one before: no ties, none infinite.

    Most evaluators, trec_eval as well, hold a score as a float32. Ascending float32 numbers are counted with integers,
    of which those are taken whose largest distance to the scores' own is smallest (isotonic regression in the maximum
    norm). Scores that descend already stay as they are.
    """
    largest, place_K = np.finfo(np.float32).max, np.arange(len(scores_K))
    bits_K = np.clip(scores_K, -largest, largest).astype(np.float32).view(np.int32).astype(np.int64)
    wanted_K = np.where(bits_K < 0, -(bits_K & 0x7FFFFFFF), bits_K) + place_K  # both zeros are number 0
    highest_K, lowest_K = np.minimum.accumulate(wanted_K), np.maximum.accumulate(wanted_K[::-1])[::-1]
    level_K = np.clip((highest_K + lowest_K) // 2, len(scores_K) - 1 - LARGEST_PLACE, LARGEST_PLACE)
    number_K = level_K - place_K
    sign_K = np.where(number_K < 0, np.float32(-1), np.float32(1))
    return sign_K * np.abs(number_K).astype(np.int32).view(np.float32)


def read_lists_to_rerank(path: Path, query_ids_Q: Sequence[str], passage_ids: Sequence[str]) -> np.ndarray:
    """Lists to rerank, as passages_QK int64 in file order, -1 after a list's end.

    Reads a TREC run (blanks) or MS MARCO's top1000 (tabs: qid, pid, query, passage), plain or gzipped.
    Lines of other queries are passed over, and so is a passage that its list holds already. UserError
    names the line that is of neither form or whose passage is not in the collection, what `numbered_lines`
    finds wrong, and a file in which no wanted query occurs.
    """
    query_row = {query_id: row for row, query_id in enumerate(query_ids_Q)}
    number_of: dict[str, int] = {}  # the file's passages, by their first appearance
    first_lines: list[int] = []
    lists: list[dict[int, None]] = [{} for _ in query_ids_Q]
    for line, text in numbered_lines(path):
        words = columns_of(text)
        if len(words) not in (4, 6):
            raise UserError(f"{path}:{line}: {len(words)} columns, expected a TREC run's 6 or top1000's 4")
        query = query_row.get(words[0])
        if query is None:
            continue
        number = number_of.setdefault(words[2] if len(words) == 6 else words[1], len(number_of))
        if number == len(first_lines):
            first_lines.append(line)
        lists[query][number] = None
    if not any(lists):
        raise UserError(f"{path} names none of the {len(query_row)} queries; give a run over this split")
    row_of = offsets_of(list(number_of), passage_ids)
    for (passage_id, number), line in zip(number_of.items(), first_lines, strict=True):
        if row_of[number] < 0:
            raise UserError(f"{path}:{line}: passage {passage_id} is not in the collection; give its own run file")
    passages_QK = np.full((len(lists), max(map(len, lists))), -1, np.int64)
    for row, numbers in enumerate(lists):
        passages_QK[row, : len(numbers)] = row_of[list(numbers)]
    return passages_QK


def offsets_of(names: Sequence[str], passage_ids: Sequence[str]) -> np.ndarray:
    """The place of each name in ``passage_ids``, -1 where it is not there: int64. The names are fewer, each once."""
    place_of = {name: place for place, name in enumerate(names)}
    offset_P = np.full(len(names), -1, np.int64)
    for offset, passage_id in enumerate(passage_ids):
        if passage_id in place_of:
            offset_P[place_of[passage_id]] = offset
    return offset_P
