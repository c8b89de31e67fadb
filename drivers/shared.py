"""What the drivers have in common: opening their inputs, making batches, the header of a program's log."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.mining.negative_lists import NegativeLists
from data.sources.atomic_dir import check_can_write
from data.tokens.collection import Preprocessed, check_tokenizer, open_preprocessed
from data.tokens.token_cache import gather_from
from data.tokens.verify import check_inputs
from data.training.batches import Batch, batches_of_triples, make_batch
from data.training.triple_order import queries_in_order
from drivers.model_identity import check_checkpoint
from model.encode import EncodingSettings
from model.encoders.registry import check_fits, check_model_type, load_encoder, read_config
from model.hub import is_path
from model.kernels.precision import compute_dtype, quickest_dtype
from utils import distributed
from utils.distributed import World
from utils.errors import UserError
from utils.flags import ComputeFlags, RefreshFlags
from utils.prefetch import prefetched
from utils.run_log import header, say
from utils.seen import SeenQueries
from utils.system import keep_freed_memory

# Starting


def start_program(program: str, flags_as_json: str, flags: Any) -> tuple[World, str]:
    """Join the other ranks, write the `.out` header, and give the run its id."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    world = distributed.start(flags.no_cuda, flags.collective_timeout_seconds)
    run_id = distributed.broadcast_json(world, secrets.token_hex(6))
    if world.is_first:
        for line in header(program, run_id, flags_as_json, distributed.device_names(world)):
            say(line)
    return world, run_id


def open_collection(flags: Any, tokenizer_dir: str) -> Preprocessed:
    """The preprocessed directory, checked against the tokenizer that the model comes with.

    A --dry_run fetches no tokenizer from the hub, and reads the directory's files here: a job does it later, saying so.
    """
    collection = open_preprocessed(flags.data_dir, flags.max_seq_length, flags.max_query_length)
    if flags.dry_run:
        check_inputs(collection)
    if tokenizer_dir and (is_path(tokenizer_dir) or not flags.dry_run):
        check_tokenizer(collection, tokenizer_dir)
    return collection


def check_compute_flags(flags: Any, default_dtype: str = "auto") -> torch.dtype | None:
    """Refuse what cannot be computed; the type to compute in, None for float32."""
    check_model_type(flags.model_type)
    device = distributed.own_device(flags.no_cuda)
    if flags.compile:
        check_compiler(device.type == "cuda")
    quickest = quickest_dtype(device, flags.model_type)
    return compute_dtype(flags.dtype, flags.fp16, flags.bf16, flags.fp16_opt_level, default_dtype, quickest)


def type_is_hardware_s(flags: ComputeFlags, default_dtype: str = "auto") -> bool:
    """Whether --dtype auto holds: on another machine the program may compute in another type."""
    word = flags.dtype or ("given" if flags.fp16 or flags.bf16 else default_dtype)
    return word == "auto"


def check_exchange_flags(flags: Any) -> None:
    if flags.lease_seconds < 3 * flags.heartbeat_seconds:
        raise UserError(
            f"--lease_seconds is {flags.lease_seconds:g} with --heartbeat_seconds {flags.heartbeat_seconds:g}, "
            "expected at least three heartbeats in a lease's life"
        )

    if distributed.processes_of_launcher() > 1 and flags.lease_seconds >= flags.collective_timeout_seconds:
        raise UserError(
            f"--lease_seconds is {flags.lease_seconds:g}, expected less than --collective_timeout_seconds, "
            f"{flags.collective_timeout_seconds:g}: the other processes wait while the first takes a lease over"
        )


def check_refresh_flags(flags: RefreshFlags) -> None:
    check_exchange_flags(flags)
    if flags.refresh_mode == "lockstep" and not flags.steps_per_refresh:
        raise UserError("--refresh_mode lockstep needs --steps_per_refresh above 0; how many steps between refreshes?")


def open_encoder(
    flags: Any,
    model_dir: str,
    collection: Preprocessed,
    new_head: bool = False,
    changes: dict[str, Any] | None = None,
    goes_on: bool = False,
) -> Any:
    """The model in ``model_dir``, checked to have a place for every token of the collection.

    ``goes_on``: it is a checkpoint of this run, which has its own config and not --config_name's.
    """
    config_name = "" if goes_on else flags.config_name
    encoder = load_encoder(flags.model_type, model_dir, config_name, new_head, changes)
    longest = max(flags.max_seq_length, flags.max_query_length)
    check_fits(encoder, collection.manifest["vocab_size"], collection.pad_token_id, longest)
    return encoder


def load_to_encode(
    flags: Any, model_dir: str, collection: Preprocessed, dtype: torch.dtype | None, world: World
) -> Any:
    """The same on this rank's device, for encoding alone. The ranks do not speak: one may fail where others do not."""
    encoder = open_encoder(flags, model_dir, collection)
    if dtype is not None:
        encoder.lower_weights(dtype)
    return encoder.to(world.device)


def open_to_encode(
    flags: Any, model_dir: str, collection: Preprocessed, dtype: torch.dtype | None, world: World
) -> Any:
    """The same, as fast as it can be; all ranks together."""
    return settle_encoder(flags, load_to_encode(flags, model_dir, collection, dtype, world), dtype, world)


def settle_encoder(flags: Any, encoder: Any, dtype: torch.dtype | None, world: World, trains: bool = False) -> Any:
    """Make an encoder on this rank's device compute as fast as it can there; all ranks together.

    On a CPU the process keeps the memory that it frees from here on.
    """
    if world.device.type == "cpu":
        keep_freed_memory()
    if flags.compile:
        if not encoder.is_packed:
            say_of_padding(world, False)
        if world.size > 1:
            torch._dynamo.config.optimize_ddp = False  # which cuts the program up by DDP's buckets
        quote_library_path()
        encoder.compile(dynamic=True)  # one program for batches of all lengths
    elif not encoder.is_packed:
        leave_padding_out(encoder, dtype, world, trains)
        if not trains:
            encoder.arrange_weights()
    return encoder


def leave_padding_out(encoder: Any, dtype: torch.dtype | None, world: World, trains: bool) -> None:
    """On a CPU always, by nothing but torch's plain operations; on GPUs where every rank has the kernels."""
    if world.device.type == "cpu":
        encoder.pack_texts(True)
        say_of_padding(world, True)
    else:
        pack_on_gpus(encoder, dtype, world, trains)


def pack_on_gpus(encoder: Any, dtype: torch.dtype | None, world: World, trains: bool) -> None:
    """Where every rank can; each tries it out first."""
    from model.kernels.packed_attention import refusal_to_pack

    refusal = refusal_to_pack(encoder, world.device, dtype, trains)
    if refusal:
        say(f"attention: rank {world.rank} cannot leave padding out ({refusal})")
    can_all = not distributed.any_rank(world, bool(refusal))
    encoder.pack_texts(can_all)
    say_of_padding(world, can_all)


def say_of_padding(world: World, is_packed: bool) -> None:
    if world.is_first:
        say(f"attention: texts {'packed without padding' if is_packed else 'padded to the longest of a batch'}")


def check_compiler(on_gpu: bool) -> None:
    """UserError where torch.compile would find no compiler, or on a CPU no place that it can work in."""
    variable, known = ("CC", ("gcc", "clang")) if on_gpu else ("CXX", ("g++", "clang++"))
    if not any(shutil.which(name) for name in (os.environ.get(variable, ""), *known) if name):
        raise UserError(
            f"--compile needs a compiler, there is no {' or '.join(known)} on this machine; "
            f"install one, name it in {variable}, or leave --compile out"
        )

    places = {"TMPDIR": tempfile.gettempdir(), "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")}
    for variable, directory in places.items():
        if not on_gpu and any(map(str.isspace, directory)):
            raise UserError(
                f"--compile cannot work in {directory}, which has a blank in it: set {variable} to a directory without "
                "one, or leave --compile out"
            )


def quote_library_path() -> None:
    """Because torch's compiler gives the linker the directory of torch's libraries unquoted, in pieces at a blank."""
    from torch.utils import cpp_extension

    path = cpp_extension.TORCH_LIB_PATH
    if Path(path).is_dir():  # not quoted yet
        cpp_extension.TORCH_LIB_PATH = shlex.quote(path)


def check_output_dirs(*directories: str) -> None:
    """UserError where one of them could not be written in; makes nothing."""
    for directory in directories:
        check_can_write(Path(directory))


def check_model_directory(flags: Any, model_dir: str) -> None:
    """What can be known of a model before it is loaded; every process looks for itself.

    A --dry_run verifies the checkpoint's files here. In a job process 0 does it once for all, and says so.
    """
    if flags.dry_run:
        check_checkpoint(flags, model_dir)
    if Path(model_dir).is_dir() or flags.config_name:
        read_config(model_dir, flags.model_type, flags.config_name)
    elif is_path(model_dir):
        raise UserError(f"{model_dir} is not a directory, expected a checkpoint (config.json and weights)")


def batches_from_lists(
    flags: Any,
    collection: Preprocessed,
    world: World,
    lists: NegativeLists,
    stream: int,
    start: int = 0,
    seen: SeenQueries | None = None,
) -> Iterator[Batch]:
    """This rank's training batches, endlessly; each of the global batch's equal parts goes to one rank.

    ``stream`` (the refresh number) and --seed decide their order; ``start`` batches have been trained on already.
    ``seen`` notes the queries of those, and of each batch that is taken.
    """
    pad_id = collection.pad_token_id
    queries = gather_from(collection.queries("train"), flags.max_query_length, pad_id)
    passages = gather_from(collection.passages, flags.max_seq_length, pad_id)
    positives = collection.qrels("train").positives() if flags.loss == "in_batch" else None
    batch_triples, group_size = flags.per_gpu_train_batch_size * world.size, flags.group_size
    if seen is not None:
        for query_T in queries_in_order(lists, group_size, flags.seed, stream, start * batch_triples):
            seen.add(query_T)
    made = prefetched(
        (triples.query_T, make_batch(triples, world.rank, world.size, queries, passages, positives))
        for triples in batches_of_triples(lists, group_size, batch_triples, flags.seed, stream, start)
    )
    return as_taken(made, seen)


def as_taken(made: Iterator[tuple[np.ndarray, Batch]], seen: SeenQueries | None) -> Iterator[Batch]:
    """The batches; the queries of one are noted when it is asked for, not when it is made beforehand."""
    for query_T, batch in made:
        if seen is not None:
            seen.add(query_T)
        yield batch


def seed_everything(seed: int, process: int, step: int = 0) -> None:
    """torch's global generator drives initial weights and dropout; all else takes its generator as an argument.

    Process 0 has torch's own stream of ``seed``. The others' are of the pair: seed + process would give process 1 of
    one seed what process 0 of the next one draws. ``step``, of the checkpoint that is resumed, is for a process whose
    state it does not hold: one that an earlier job did not have.
    """
    if process:
        numbers = [seed, process, step] if step else [seed, process]
        seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    torch.manual_seed(seed)


def encoding_settings(flags: Any, collection: Preprocessed, dtype: torch.dtype | None) -> EncodingSettings:
    return EncodingSettings(
        max_seq_length=flags.max_seq_length,
        max_query_length=flags.max_query_length,
        pad_id=collection.manifest["pad_token_id"],
        budget_tokens=flags.per_gpu_eval_batch_size * flags.max_seq_length,
        dtype=dtype,
    )
