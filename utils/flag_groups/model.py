"""Flags of the model, and of what it computes on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from utils.declared.model_types import MODEL_TYPES, Pooling
from utils.declared.words import words_help
from utils.flag_groups.common import seconds_flag
from utils.flag_values import Group, flag, tristate


@dataclass(frozen=True, kw_only=True)
class ModelTypeFlags:
    GROUP: ClassVar[Group] = "model"

    model_type: str = flag(help=partial(words_help, MODEL_TYPES), aliases=["--train_model_type"])
    pooling: Pooling | None = flag(
        None,
        "hf, and rdot_nll and dpr in run_warmup: first token (cls is another word for it), mean or last; default: what "
        "the model's files say, else mean, of rdot_nll and dpr first",
        decides="nothing",
    )
    normalize: bool | None = tristate("hf: embeddings of length 1; default: what the model's files say, else not")
    config_name: str = flag("", "config file or directory, where it is not the model's own", is_path=True)
    tokenizer_name: str = flag("", "tokenizer directory, where it is not the model's own", is_path=True)


@dataclass(frozen=True, kw_only=True)
class ModelFlags(ModelTypeFlags):
    GROUP: ClassVar[Group] = "model"

    model_name_or_path: str = flag(
        "",
        "directory (or hub name) to start from; without it the model starts from random weights of --config_name",
        is_path=True,
    )


@dataclass(frozen=True, kw_only=True)
class ComputeFlags:
    GROUP: ClassVar[Group] = "job"

    per_gpu_eval_batch_size: int = flag(
        128,
        "texts of --max_seq_length tokens that an encoding batch may hold; shorter texts make larger batches",
        at_least=1,
        decides="nothing",
    )
    no_cuda: bool = flag(False, "stay on the CPU even where there is a GPU", decides="nothing")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = flag(
        None,
        "type to compute in; auto: bf16 where the hardware is quick at it; default: auto, in training fp32",
        decides="nothing",
    )
    fp16: bool = flag(False, "the same as --dtype fp16 (training: with loss scaling)", decides="nothing")
    bf16: bool = flag(False, "the same as --dtype bf16", decides="nothing")
    compile: bool = flag(
        False, "torch.compile each model that is loaded: a minute, then faster, mostly on a GPU", decides="bytes"
    )
    collective_timeout_seconds: float = seconds_flag(
        1800.0, "several processes: one that the others have waited for so long ends the job"
    )
    fp16_opt_level: str = flag(
        "O1", "apex's word: O0 is float32, O1 is autocast; O2 and O3 are refused", decides="nothing"
    )
    local_rank: int = flag(-1, "ignored: torchrun sets it in the environment", at_least=-1, decides="nothing")
    server_ip: str = flag("", "ignored: start with python -m debugpy instead", decides="nothing")
    server_port: str = flag("", "ignored: start with python -m debugpy instead", decides="nothing")

    IGNORED: ClassVar[dict[str, str]] = {
        "server_ip": "for remote debugging start with python -m debugpy",
        "server_port": "for remote debugging start with python -m debugpy",
        "local_rank": "torchrun says it in the environment: torchrun --nproc_per_node N -m drivers.PROGRAM",
    }
