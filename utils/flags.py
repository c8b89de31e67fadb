"""The parser that all programs share: flags from a dataclass, help by group, a mistake answered in one line.

Flags are declared in utils/flag_groups, drivers/cli and the programs of data/ and results/. Importing this module
must stay cheap: ``--help`` and a mistyped flag answer before torch is loaded.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import inspect
import json
import os
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

try:
    from transformers.hf_argparser import HfArgumentParser
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"error: {sys.executable} has no {missing.name}: run bash commands/setup_venv.sh, then use .venv/bin/python\n"
    )
    sys.exit(2)

from utils.flag_values import GROUPS, Group, OneLineParser, Range, expand_path, flag

# Flags of programs that are not part of this project yet, or that cannot mean anything here.
# A command line that uses one fails with the line that says what to write instead.
REFUSED = {
    **dict.fromkeys(
        ("question_dir", "wiki_dir", "answer_dir", "passage_path", "test_qa_path", "trivia_test_qa_path", "num_epoch"),
        "belongs to ANCE's OpenQA (DPR) programs, which are not here yet; omit it",
    ),
}
OURS = ("range", "is_path", "decides", "group")  # of a flag's metadata, what is not argparse's
WITHOUT_EFFECT = "accepted for the sake of ANCE's command lines, without effect"
HELP_COLUMNS, HELP_INDENT = 100, 26


@dataclass(frozen=True, kw_only=True)
class ProgramFlags:
    GROUP: ClassVar[Group] = "job"

    dry_run: bool = flag(
        False, "parse, resolve and check what can be checked, print the flags as JSON, and exit", decides="nothing"
    )

    DEFAULTS: ClassVar[dict[str, Any]] = {}  # where a program's default differs from the group's
    RANGES: ClassVar[dict[str, Range]] = {}  # and where its range does
    IGNORED: ClassVar[dict[str, str]] = {}  # accepted for old command lines without effect, and why; any group has one
    POSITIONAL: ClassVar[str] = ""  # the flag whose name may be left off
    EXAMPLE: ClassVar[str] = ""  # a command, at the end of --help


Flags = TypeVar("Flags", bound=ProgramFlags)
Field = dataclasses.Field[object]


def parse_flags(flags_class: type[Flags], program: str, argv: list[str] | None = None) -> Flags:
    """Parse a command line into ``flags_class``; one warning line for each flag given without effect.

    Exits with code 2 and one line where a flag is unknown, refused, missing, not of its type or not in its range.
    """
    argv = with_name_of_positional(flags_class, sys.argv[1:] if argv is None else argv)
    parser = make_parser(flags_class, program)
    own = {f.name for f in dataclasses.fields(flags_class)}
    given = [word.split("=", 1)[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")]
    for name in given:
        if name in REFUSED and name not in own:
            parser.error(f"--{name} {REFUSED[name]}")
    known = parser._option_string_actions
    for word in argv:  # before argparse, which would first ask for required flags
        if word.startswith("--") and word.split("=", 1)[0] not in known:
            parser.error(unknown_flag(word.split("=", 1)[0], known))
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(unknown_flag(unknown[0], known))
    flags = flags_class(**vars(found))
    check_ranges(parser, flags)
    check_launcher(parser, flags)
    flags = dataclasses.replace(flags, **expanded_paths(parser, flags))
    reasons = ignored_flags(flags_class)
    for name in dict.fromkeys(given):
        if name in reasons:
            sys.stderr.write(f"{program}: warning: --{name} has no effect here: {reasons[name]}\n")
    return flags


# What a dataclass of flags says


def range_of(flags_class: type[ProgramFlags], field: Field) -> Range | None:
    """The range of a number, None for any other flag."""
    range_: Range | None = flags_class.RANGES.get(field.name, field.metadata.get("range"))
    return range_


def ignored_flags(flags_class: type[ProgramFlags]) -> dict[str, str]:
    """The flags without effect, and why."""
    reasons: dict[str, str] = {}
    for owner in reversed(flags_class.__mro__):
        reasons.update(vars(owner).get("IGNORED", {}))
    return reasons


def has_one_value(hint: object) -> bool:
    """Whether a flag of this type decides nothing: it takes one word alone."""
    return typing.get_origin(hint) is typing.Literal and len(typing.get_args(hint)) == 1


def group_of(flags_class: type[ProgramFlags], field: Field, hint: object) -> str:
    """The heading in --help of a flag of type ``hint``: its own, else its class's. KeyError where it has none."""
    if field.name in ignored_flags(flags_class) or has_one_value(hint):
        return WITHOUT_EFFECT
    owner = next(owner for owner in flags_class.__mro__ if field.name in inspect.get_annotations(owner))
    group: Group = field.metadata["group"] or vars(owner)["GROUP"]
    return heading_of(group)


def heading_of(group: Group) -> str:
    return f"{group}: {GROUPS[group]}"


def fields_by_group(flags_class: type[ProgramFlags]) -> dict[str, list[Field]]:
    """The headings in the order of --help, those with no flag omitted."""
    found: dict[str, list[Field]] = {heading: [] for heading in (*map(heading_of, GROUPS), WITHOUT_EFFECT)}
    hints = typing.get_type_hints(flags_class)
    for field in dataclasses.fields(flags_class):
        found[group_of(flags_class, field, hints[field.name])].append(field)
    return {heading: fields for heading, fields in found.items() if fields}


def with_name_of_positional(flags_class: type[ProgramFlags], argv: list[str]) -> list[str]:
    """``A B --x 1`` becomes ``--x 1 --POSITIONAL A B``: a dataclass has no positional arguments.

    A word straight after a ``--flag`` is its value, unless the flag is a boolean; a list takes all up to the next flag.
    """
    name, hints = flags_class.POSITIONAL, typing.get_type_hints(flags_class)
    if not name:
        return argv
    for declared in dataclasses.fields(flags_class):
        hints |= {alias.removeprefix("--"): hints[declared.name] for alias in declared.metadata.get("aliases", ())}
    values, rest, taken_by = [], [], ""
    for word in argv:
        if word.startswith("-") and word != "-":
            rest.append(word)
            taken_by = "" if "=" in word else word.removeprefix("--").replace("-", "_")
            taken_by = "" if taken_by not in hints or hints[taken_by] is bool else taken_by
        elif taken_by in (name, ""):
            values.append(word)
        else:
            rest.append(word)
            taken_by = taken_by if "list" in str(hints[taken_by]) else ""
    rest = [word for word in rest if word != f"--{name}"]
    return [*rest, f"--{name}", *values] if values else rest


# Help


class HelpFormatter(argparse.HelpFormatter):
    """Keeps the lines of a text, shows a flag by the name with underscores alone, and a default where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=HELP_INDENT)
        self._width = min(self._width, HELP_COLUMNS)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_none = action.default is None or action.default is False or action.default in ("", argparse.SUPPRESS)
        return action.help if has_none else f"{action.help} (default: %(default)s)"

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = [(line, "      " if line.startswith(" ") else "") for line in text.split("\n")]
        return [part for line, indent in lines for part in textwrap.wrap(line, width, subsequent_indent=indent)]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [name for name in action.option_strings if "-" not in name.removeprefix("--")[1:]]
        return super()._format_action_invocation(shown)


class Parser(OneLineParser, HfArgumentParser):
    """HfArgumentParser that answers a mistake in one line."""


def make_parser(flags_class: type[ProgramFlags], program: str) -> Parser:
    """With the flags in groups, a usage of those that are required, and the program's example."""
    about = " ".join((flags_class.__doc__ or "").split())
    parser = Parser(
        prog=program,
        description=textwrap.fill(f"{about} A bare --flag of true|false is true.", HELP_COLUMNS - 2),
        epilog=f"example:\n  {flags_class.EXAMPLE}",
        allow_abbrev=False,
        add_help=False,
        formatter_class=HelpFormatter,
    )
    hints = typing.get_type_hints(flags_class)
    for heading, fields in fields_by_group(flags_class).items():
        section = parser.add_argument_group(heading)
        for field in fields:
            shown = copy.copy(field)
            shown.type = hints[field.name]
            shown.metadata = MappingProxyType(argparse_kwargs(flags_class, field, hints[field.name]))
            # Of its first argument it calls add_argument alone, which a group has as well.
            HfArgumentParser._parse_dataclass_field(typing.cast(Parser, section), shown)
        if heading == heading_of("job"):
            section.add_argument("-h", "--help", action="help", help="print this and exit")
    parser.set_defaults(**flags_class.DEFAULTS)
    parser.usage = usage_of(parser, flags_class)
    return parser


def argparse_kwargs(flags_class: type[ProgramFlags], field: Field, hint: object) -> dict[str, object]:
    """What argparse is told of a flag: its help with its range, and the last word of its name for a value."""
    kwargs = {name: value for name, value in field.metadata.items() if name not in OURS}
    text = kwargs["help"]
    kwargs["help"] = (text() if callable(text) else text).replace("%", "%%")
    if field.name in (reasons := ignored_flags(flags_class)):
        kwargs["help"] = f"ignored: {reasons[field.name]}"
    elif range_ := range_of(flags_class, field):
        kwargs["help"] = f"{kwargs['help']} ({range_.in_help()})"
    if hint is bool or hint == bool | None:
        kwargs["metavar"] = "true|false"
    elif "Literal" not in str(hint) and "choices" not in kwargs:
        kwargs["metavar"] = field.name.rpartition("_")[2].upper()
    return kwargs


def usage_of(parser: Parser, flags_class: type[ProgramFlags]) -> str:
    """One paragraph: the flags that must be given."""
    required = []
    for action in parser._actions:
        if action.dest == flags_class.POSITIONAL:
            required.append(f"{action.dest.upper()}...")
        elif action.required:
            required.append(f"--{action.dest} {action.metavar}{' ...' if action.nargs == '+' else ''}")
    return textwrap.fill(" ".join(["%(prog)s", *required, "[flags]"]), HELP_COLUMNS - 10, subsequent_indent=" " * 7)


# Checks of what was given


def check_ranges(parser: Parser, flags: ProgramFlags) -> None:
    for field in dataclasses.fields(flags):
        range_, value = range_of(type(flags), field), getattr(flags, field.name)
        if range_ is None or value is None:
            continue
        for number in value if isinstance(value, list) else [value]:
            if problem := range_.problem(number):
                parser.error(f"--{field.name} is {number}, {problem}")


def expanded_paths(parser: Parser, flags: ProgramFlags) -> dict[str, Any]:
    """The paths that were given, by flag, with their ``~`` expanded."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        if not field.metadata["is_path"] or value is None or value == field.default:
            continue
        try:
            found[field.name] = [*map(expand_path, value)] if isinstance(value, list) else expand_path(value)
        except ValueError as error:
            parser.error(f"--{field.name} {error}")
    return found


def unknown_flag(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"unknown flag {word}" + (f"; did you mean {close[0]}?" if close else "; --help lists them")


def check_launcher(parser: Parser, flags: ProgramFlags) -> None:
    """A --local_rank without torchrun's environment would train as many separate models as there are processes."""
    if getattr(flags, "local_rank", -1) >= 0 and "WORLD_SIZE" not in os.environ:
        parser.error(
            f"--local_rank {vars(flags)['local_rank']} without a launcher's environment; start several processes with "
            f"torchrun --nproc_per_node N -m drivers.{parser.prog}, one with python -m drivers.{parser.prog}"
        )


def flags_json(values: Mapping[str, object], **resolved: object) -> str:
    """One JSON object: the flags' values as resolved, and what was derived from them."""
    return json.dumps({**values, **resolved}, default=str)


def answer_dry_run(flags: ProgramFlags, **resolved: object) -> bool:
    """Whether this is a --dry_run: what it was for has been checked, and `flags_json` is written to stdout."""
    if flags.dry_run:
        sys.stdout.write(flags_json(dataclasses.asdict(flags), **resolved) + "\n")
    return flags.dry_run
