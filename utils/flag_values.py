"""How a flag is declared: with the range of a number, what a path means, what its value decides, and its group.

Ranges and paths are checked by the parser of the program. Nothing but the standard library is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from _typeshed import DataclassInstance

Number = int | float
Decides = Literal["result", "step", "bytes", "nothing"]
Group = Literal["model", "data", "optimisation", "negatives", "refresh", "search", "evaluation", "job"]
AnyNumber = TypeVar("AnyNumber", int, float)

LARGEST_INTEGER = 2**63 - 1  # numpy's and torch's
LARGEST_SIZE = 2**31 - 1  # of what is multiplied by another size: the product is an integer of numpy's and torch's
LONGEST_SECONDS = 1e9  # 30 years; the system's own waits take no more than some hundred
MOST_WORKERS = 1024  # processes or threads; more than there are cores is of no use

# The sections of --help, in their order.
GROUPS: dict[Group, str] = {
    "model": "the encoder, and what it starts from",
    "data": "what is read, and how much of a text",
    "optimisation": "how the model is trained",
    "negatives": "which passages a query is trained against",
    "refresh": "when negatives are made again, and from which model",
    "search": "how the collection is searched",
    "evaluation": "what is measured",
    "job": "where it writes and logs, what it runs on, how it resumes",
}


@dataclass(frozen=True)
class Range:
    """Between which ends a number lies; it is always finite. An end of None is none; an integer's is `LARGEST_SIZE`."""

    at_least: Number | None = None
    above: Number | None = None
    at_most: Number | None = None

    def ends(self) -> str:
        """The ends in words, as they were declared: "at least 0 and at most 1"."""
        named = (("at least", self.at_least), ("above", self.above), ("at most", self.at_most))
        return " and ".join(f"{words} {_exact(end)}" for words, end in named if end is not None)

    def in_help(self) -> str:
        """The same without an end that nobody comes near."""
        return (replace(self, at_most=None) if self.at_most == LARGEST_INTEGER else self).ends()

    def problem(self, value: Number) -> str:
        """What was expected where ``value`` is not in the range, else ""."""
        is_whole = isinstance(value, int)
        range_ = replace(self, at_most=LARGEST_SIZE) if is_whole and self.at_most is None else self
        if (is_whole or math.isfinite(value)) and range_._holds(value):
            return ""
        return f"expected a {'whole' if is_whole else 'finite'} number, {range_.ends()}"

    def _holds(self, value: Number) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )


def _exact(end: Number) -> str:
    return str(end) if isinstance(end, int) else f"{end:g}"


def expand_path(text: str) -> str:
    """``text`` with a leading ``~`` or ``~user`` replaced by that home directory.

    Raises ValueError, in words that follow the flag's name, where it is empty or there is no such user.
    """
    if not text:
        raise ValueError("is empty, expected a path; for the directory this is started in write .")
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        raise ValueError(f"is {text}, and there is no such user; write ./{text} for what is called so") from None


class OneLineParser(argparse.ArgumentParser):
    """Refuses abbreviations, and answers a mistake in one line with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def whole_number(text: str) -> int:
    """The ``type`` of an argparse argument that is a whole number of at least 1."""
    return _checked(int(text), Range(at_least=1))


def positive_number(text: str) -> float:
    """The same of a finite number above 0."""
    return _checked(float(text), Range(above=0))


def path_argument(text: str) -> Path:
    """The same of a path."""
    try:
        return Path(expand_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _checked(value: AnyNumber, range_: Range) -> AnyNumber:
    if problem := range_.problem(value):
        raise argparse.ArgumentTypeError(f"is {value}, {problem}")
    return value


# Declaring one


def flag(
    default: Any = dataclasses.MISSING,
    help: str | Callable[[], str] = "",
    *,
    at_least: Number | None = None,
    above: Number | None = None,
    at_most: Number | None = None,
    is_path: bool = False,
    decides: Decides | None = None,
    group: Group | None = None,
    aliases: Sequence[str] = (),
    choices: Collection[str] | None = None,
) -> Any:
    """One flag of a program, as the field of a dataclass. A number must have at least one end of its range.

    Args:
        default: its value where it is not given; without one it must be.
        help: its line in --help; or what makes the line with the parser, of the words registered until then.
        at_least: the smallest value.
        above: every value is larger.
        at_most: the largest value.
        is_path: a ``~`` is expanded, and "" refused where it is not the default; a name of the hub passes as it is.
        decides: what another value means to a run that has begun. "result": another run. "bytes": the same mathematics
            with other rounding and draws of dropout. "step": as `drivers.job.resume.step_refusal` has it. "nothing":
            its effect is recorded as something else (the sha256 of what a path names, the type that --dtype resolves
            to, the key of the embeddings), or it has none. None: a path decides nothing, any other flag the result.
        group: its section of --help; None for that of the class that declares it.
        aliases: other names of the flag, as argparse takes them.
        choices: the values that it may have, as argparse takes them.

    Returns:
        What `dataclasses.field` makes, with all this in its metadata.
    """
    metadata: dict[str, object] = {"help": help, "is_path": is_path, "group": group}
    metadata["decides"] = decides or ("nothing" if is_path else "result")
    metadata |= {"aliases": list(aliases)} if aliases else {}
    metadata |= {"choices": choices} if choices is not None else {}
    if not at_least is above is at_most is None:
        metadata["range"] = Range(at_least, above, at_most)
    return dataclasses.field(default=default, metadata=metadata)


def tristate(help: str) -> Any:
    """A boolean that also knows "not given": ``--x`` and ``--x true`` are True, ``--x false`` is False.

    It decides nothing by itself, but what it is another word for.
    """
    declared = flag(None, help, decides="nothing")
    return dataclasses.field(default=None, metadata={**declared.metadata, "nargs": "?", "const": True})


def names_deciding(flags_class: type[DataclassInstance], *what: Decides) -> frozenset[str]:
    """The flags that say so at their declaration."""
    return frozenset(field.name for field in dataclasses.fields(flags_class) if field.metadata["decides"] in what)
