"""The embeddings of one train query's neighbourhood under a checkpoint: what the arms' negatives look like to it.

    python -m drivers.run_neighbourhood --data_dir D --model_type static --model_name_or_path W/checkpoint-250 \
        --negatives top=TOP/ann_training_data_0 bottom=BOTTOM/ann_training_data_0 --output_dir O

Writes O/neighbourhood.npz and O/neighbourhood.json (utils/ir/query_map.py says what they hold): the query, its
positives, its negatives of each file with their ranks, and a random sample of the other passages.
results/plots/tsne.py draws them.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.stderr.write(
        "run_neighbourhood: error: start from the repository root: python -m drivers.run_neighbourhood "
        "(several processes: torchrun --nproc_per_node N -m drivers.run_neighbourhood)\n"
    )
    sys.exit(2)

from drivers.cli import NeighbourhoodFlags
from utils.errors import UserError, run_program
from utils.flags import flags_json, parse_flags


def main() -> None:
    given = parse_flags(NeighbourhoodFlags, "run_neighbourhood")
    import numpy as np

    from data.tokens.verify import check_inputs
    from drivers.embeddings.text_lengths import with_lengths
    from drivers.evaluate.query_map import choose_query, choose_texts, named_files, read_arms
    from drivers.job.encoder_setup import check_model_directory
    from drivers.job.setup import check_compute_flags, check_output_dirs, open_collection

    flags = with_lengths(given)
    dtype = check_compute_flags(flags)
    if not flags.model_name_or_path:
        raise UserError("--model_name_or_path is missing, expected the checkpoint that embeds the texts")
    files = named_files(flags.negatives)
    check_model_directory(flags, flags.model_name_or_path)
    check_output_dirs(flags.output_dir)
    collection = open_collection(flags, flags.tokenizer_name or flags.model_name_or_path)
    check_inputs(collection)
    arms = read_arms(files, collection)
    query = choose_query(flags.query, arms, files, collection.queries("train").original_ids())
    chosen = choose_texts(query, arms, collection, flags.background, np.random.default_rng([flags.seed, query]))
    if flags.dry_run:
        sys.stdout.write(flags_json(flags, resolved_query=chosen.query_id) + "\n")
        return
    run(flags, collection, chosen, dtype)


def run(flags: NeighbourhoodFlags, collection: Any, chosen: Any, dtype: Any) -> None:
    """Load, embed, write. Several ranks all embed these few texts; the first writes them."""
    from drivers.embeddings.text_lengths import describe_lengths
    from drivers.evaluate.query_map import embed
    from drivers.job.encoder_setup import encoding_settings, open_to_encode
    from drivers.job.model_identity import check_checkpoint
    from drivers.job.setup import start_program
    from utils import distributed
    from utils.run_log import say

    world, _ = start_program("run_neighbourhood", flags_json(flags), flags)
    distributed.on_process0(world, partial(check_checkpoint, flags, flags.model_name_or_path))
    if world.is_first:
        say(describe_lengths(flags, collection))
    encoder = open_to_encode(flags, flags.model_name_or_path, collection, dtype, world)
    settings = encoding_settings(flags, collection, dtype)
    embedding_ND = embed(encoder, collection, chosen, settings, world)
    distributed.on_process0(world, partial(write, flags, collection, chosen, embedding_ND))
    distributed.stop(world)


def write(flags: NeighbourhoodFlags, collection: Any, chosen: Any, embedding_ND: Any) -> None:
    """Both files, the record last."""
    from drivers.evaluate.query_map import named_files
    from utils.ir.query_map import KINDS, Neighbourhood, write_neighbourhood
    from utils.run_log import say

    model = flags.model_name_or_path
    arrays = (embedding_ND, chosen.passage_N, chosen.kind_N, chosen.rank_AN)
    files = tuple("/".join(path.parts[-4:]) for path in named_files(flags.negatives).values())  # seed/arm/ann_data/name
    found = Neighbourhood(chosen.query_id, chosen.arms, files, model, *arrays)
    counts = {name: found.count(kind) for kind, name in enumerate(KINDS)}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    say(f"query {found.query_id}: {told} texts; arms {', '.join(found.arms)}")
    origin = {"seed": flags.seed, "collection_fingerprint": collection.manifest["collection_fingerprint"]}
    path = write_neighbourhood(Path(flags.output_dir), found, {"counts": counts, **origin})
    say(f"finished {path}")


if __name__ == "__main__":
    run_program("run_neighbourhood", main)
