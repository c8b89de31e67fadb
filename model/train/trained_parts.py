"""Which of an encoder's weights are trained: all of them, one tower's, or LoRA's adapters alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.encoders.base import Encoder, HasTowers
from model.encoders.spec import Side
from utils.declared.lora import LoraSettings


@dataclass(frozen=True)
class TrainedParts:
    """``lora`` is None where no adapters are trained, ``frozen`` where no side stays as it is."""

    lora: LoraSettings | None = None
    frozen: Side | None = None

    def record(self) -> dict[str, object]:
        """By the names of the flags, as a run records it: nothing where all is trained, as earlier versions did."""
        frozen: dict[str, object] = {"freeze": self.frozen} if self.frozen else {}
        lora = vars(self.lora) if self.lora is not None else {}
        return frozen | {f"lora_{name}": value for name, value in lora.items()}


def choose_trained(encoder: Encoder, parts: TrainedParts, name_or_path: str, seed: int) -> Encoder:
    """The same encoder, of which only these parts will be trained.

    Args:
        encoder: as opened.
        parts: of it.
        name_or_path: the directory or hub name that it was opened from, or that the run began with.
        seed: of the first weights of adapters, the same on all processes.

    Raises:
        UserError: it has no such parts, or adapters that are not to be trained.
    """
    from model.encoders.lora import add_adapters, check_adapters

    check_adapters(Path(name_or_path), parts.lora)
    if parts.lora is not None:
        add_adapters(encoder, parts.lora, name_or_path, seed)
    if parts.frozen is not None:
        assert isinstance(encoder, HasTowers)
        encoder.freeze(parts.frozen)
    return encoder


def check_trained(encoder: Encoder, parts: TrainedParts, directory: Path | None) -> None:
    """UserError where `choose_trained` would refuse.

    Args:
        encoder: without weights, and without the adapters that the directory may hold.
        parts: of it.
        directory: where it is from; None for random weights.
    """
    from model.encoders.lora import check_adapters, targets_of

    has_adapters = directory is not None and check_adapters(directory, parts.lora)
    if parts.lora is not None and not has_adapters:
        targets_of(encoder)
    if parts.frozen is not None:
        assert isinstance(encoder, HasTowers)
        encoder.freeze(parts.frozen)


def describe_trained(encoder: Encoder) -> str:
    """How many numbers are trained; "" for all."""
    total = sum(parameter.numel() for parameter in encoder.parameters())
    trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    kind = "LoRA's adapters" if encoder.adapter_base is not None else "weights"
    return "" if trained == total else f"trained: {kind}, {trained:,} of {total:,} numbers; the others stay"
