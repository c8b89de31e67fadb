"""Opening an encoder, and making it as fast as this machine can."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from data.tokens.collection import Preprocessed
from drivers.job.model_identity import ModelSettings, check_checkpoint
from drivers.job.text_lengths import TextLengths
from model.encode import EncodingSettings
from model.encoders.base import CastsWeights, Encoder, PacksTexts, PrepacksWeights
from model.encoders.registry import check_fits, load_encoder, read_config
from model.encoders.spec import Side
from utils.distributed import collectives
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.model_files import weight_files
from utils.hub import describe_unknown_modules, has_hub, is_path
from utils.run_log import say
from utils.system import keep_freed_memory


@dataclass(frozen=True)
class EncoderSettings:
    """Which kind of encoder a program opens, how it encodes, and whether torch.compile compiles it.

    ``changes`` replace what a model's config says, unless it is a checkpoint of the program's own run.
    """

    model_type: str
    config_name: str
    encoding: EncodingSettings
    compiled: bool
    changes: Mapping[str, object] = field(default_factory=dict)

    def at(self, lengths: TextLengths) -> EncoderSettings:
        """The same for texts of other lengths, as many of a batch as before."""
        texts = self.encoding.budget_tokens // self.encoding.max_seq_length
        encoding = EncodingSettings(
            lengths.max_seq_length, lengths.max_query_length, texts * lengths.max_seq_length, self.encoding.dtype
        )
        return replace(self, encoding=encoding)


def open_encoder(
    settings: EncoderSettings,
    model_dir: str,
    collection: Preprocessed,
    new_head: bool = False,
    changes: dict[str, Any] | None = None,
    resumes: bool = False,
) -> Encoder:
    """The model in a directory, checked to have a place for every token of the collection.

    Args:
        settings: which kind of encoder, and how it encodes.
        model_dir: a directory, or a name on the hub.
        collection: whose texts it will encode.
        new_head, changes: `load_encoder`'s.
        resumes: it is a checkpoint of this run, which has its own config and not --config_name's.

    Raises:
        UserError: files are missing or damaged, of another type, or the collection does not fit.
    """
    config_name = "" if resumes else settings.config_name
    changes = {} if resumes else {**settings.changes, **(changes or {})}
    encoder = load_encoder(settings.model_type, model_dir, config_name, new_head, changes)
    encoding = settings.encoding
    longest: dict[Side, int] = {"passage": encoding.max_seq_length, "query": encoding.max_query_length}
    check_fits(encoder.spec, collection.manifest["vocab_size"], collection.pad_token_id, longest)
    return encoder


def without_adapters(encoder: Encoder) -> Encoder:
    """The same, which has folded LoRA's adapters into its weights where it has some: encoding is as fast as ever."""
    if encoder.adapter_base is None:
        return encoder
    from model.encoders.lora import merged

    return merged(encoder)


def load_to_encode(settings: EncoderSettings, model_dir: str, collection: Preprocessed, world: World) -> Encoder:
    """An encoder on this process's device, for encoding alone, without collectives: one may fail where others do not.

    Args: those of `open_to_encode`.
    """
    encoder, dtype = without_adapters(open_encoder(settings, model_dir, collection)), settings.encoding.dtype
    if dtype is not None and isinstance(encoder, CastsWeights):
        encoder.cast_linear_weights(dtype)
    return encoder.to(world.device)


def open_to_encode(settings: EncoderSettings, model_dir: str, collection: Preprocessed, world: World) -> Encoder:
    """An encoder for encoding alone, as fast as it can be; all processes together.

    Args:
        settings: which encoder, how it computes, and how long texts may be.
        model_dir: the checkpoint's directory.
        collection: whose texts it must be able to read.
        world: the processes, with this one's device.

    Raises:
        UserError: there is no such model, or it does not fit the collection.
    """
    encoder = load_to_encode(settings, model_dir, collection, world)
    return prepare_encoder(encoder, settings.encoding.dtype, world, settings.compiled)


def prepare_encoder(
    encoder: Encoder, dtype: torch.dtype | None, world: World, compiled: bool = False, trains: bool = False
) -> Encoder:
    """Make an encoder compute as fast as it can where it is; all processes together.

    On a CPU the process keeps the memory that it frees from here on.

    Args:
        encoder: on this process's device.
        dtype: the type to compute in, None for float32.
        world: the processes, which decide together how they encode.
        compiled: torch.compile compiles it.
        trains: whether it will be trained; else only encoding has to be fast.
    """
    if world.device.type == "cpu":
        keep_freed_memory()
    if compiled:
        if encoder.padding_costs:
            say_of_padding(world, False)
        if world.size > 1:
            torch._dynamo.config.optimize_ddp = False  # which cuts the program up by DDP's buckets
        if world.device.type == "cuda":
            from torch._inductor import config

            # An analysis that stops the compiler where shapes are dynamic: pytorch's issue 197077.
            config.triton.coalesce_tiling_analysis = False
        quote_library_path()
        encoder.compile(dynamic=True)  # one program for batches of all lengths
        return encoder
    if isinstance(encoder, PacksTexts) and encoder.can_pack:
        if encoder.padding_costs:
            enable_packing(encoder, dtype, world, trains)
    elif encoder.padding_costs:
        say_of_padding(world, False)
    if isinstance(encoder, PrepacksWeights) and not trains:
        encoder.prepack_weights()
    return encoder


def enable_packing(encoder: PacksTexts, dtype: torch.dtype | None, world: World, trains: bool) -> None:
    """On a CPU always, by nothing but torch's plain operations; on GPUs where every process can: each tries it out.

    Args:
        encoder: on this process's device; it stays padded where one process cannot pack.
        dtype: the type to compute in, None for float32.
        world: all processes together.
        trains: whether gradients are needed, too.
    """
    is_packed = True
    if world.device.type != "cpu":
        from model.encoders.packing import packing_problem

        assert isinstance(encoder, Encoder)
        problem = packing_problem(encoder, world.device, dtype, trains)
        if problem:
            say(f"attention: process {world.process} cannot omit padding ({problem})")
        is_packed = not collectives.any_process(world, bool(problem))
    encoder.pack_texts(is_packed)
    say_of_padding(world, is_packed)


def say_of_padding(world: World, is_packed: bool) -> None:
    if world.is_first:
        say(f"attention: texts {'packed without padding' if is_packed else 'padded to the longest of a batch'}")


def check_compiler(on_gpu: bool) -> None:
    """UserError where torch.compile would find no compiler, or on a CPU no place that it can work in."""
    variable, known = ("CC", ("gcc", "clang")) if on_gpu else ("CXX", ("g++", "clang++"))
    if not any(shutil.which(name) for name in (os.environ.get(variable, ""), *known) if name):
        raise UserError(
            f"--compile needs a compiler, there is no {' or '.join(known)} on this machine; "
            f"install one, name it in {variable}, or omit --compile"
        )

    places = {"TMPDIR": tempfile.gettempdir(), "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")}
    for variable, directory in places.items():
        if not on_gpu and any(map(str.isspace, directory)):
            raise UserError(
                f"--compile cannot work in {directory}, which has a blank in it: set {variable} to a directory without "
                "one, or omit --compile"
            )


def quote_library_path() -> None:
    """Because torch's compiler gives the linker the directory of torch's libraries unquoted, in pieces at a blank."""
    from torch.utils import cpp_extension

    path = cpp_extension.TORCH_LIB_PATH
    if Path(path).is_dir():  # not quoted yet
        cpp_extension.TORCH_LIB_PATH = shlex.quote(path)


def check_model_directory(model: ModelSettings, is_dry_run: bool) -> None:
    """What can be known of a model before it is loaded; every process looks for itself.

    A --dry_run verifies the checkpoint's files here. In a job process 0 does it once for all, and says so.
    """
    directory = model.name_or_path
    if is_dry_run:
        check_checkpoint(model)
        if not has_hub() and (unknown := describe_unknown_modules(directory, model.model_type)):
            sys.stderr.write(f"warning: {unknown}\n")
    if Path(directory).is_dir() or model.config_name:
        read_config(directory, model.model_type, model.config_name)
    if Path(directory).is_dir():
        weight_files(Path(directory))
    elif not model.config_name and is_path(directory):
        raise UserError(f"{directory} is not a directory, expected a checkpoint (config.json and weights)")
