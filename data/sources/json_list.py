"""A JSON list that is larger than memory, read one element after the other."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError, one_line
from utils.text_files import open_text

READ_BYTES = 1 << 22
LARGEST_ELEMENT = 1 << 26  # characters; an element that does not end within them is taken for no JSON
BLANKS = re.compile(r"[ \t\r\n]*")


class TextAhead:
    """The characters of a file from ``at``, read as far as they are looked at."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file, self.decoder = path, file, codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.is_at_end = "", 0, False

    def fill(self) -> bool:
        """Read more; False where there is none. UserError for invalid UTF-8."""
        if self.is_at_end:
            return False
        part = self.file.read(READ_BYTES)
        self.is_at_end = not part
        try:
            more = self.decoder.decode(part, final=self.is_at_end)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path} is not valid UTF-8 ({error.reason}); fetch it again, or convert it to UTF-8"
            ) from None
        self.text, self.at = self.text[self.at :] + more, 0
        return True

    def next_sign(self) -> str:
        """The next character that is no blank, which stays; "" at the end."""
        while True:
            blanks = BLANKS.match(self.text, self.at)
            self.at = blanks.end() if blanks else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.fill():
                return ""


def read_json_list(path: Path) -> Iterator[Any]:
    """The elements of the list that ``path`` holds, plain or gzipped.

    UserError where it holds no list, or with the number of the element that is no JSON.
    """
    with open_text(path) as file:
        ahead = TextAhead(path, file)
        if ahead.next_sign() != "[":
            raise UserError(f"{path} begins with {ahead.text[ahead.at :][:20]!r}, expected a JSON list")
        ahead.at += 1
        if ahead.next_sign() == "]":
            return
        number, sign = 0, ","
        while sign == ",":
            number += 1
            yield read_element(ahead, number)
            sign = ahead.next_sign()
            ahead.at += 1
        if sign != "]":
            found = repr(sign) if sign else "the end of the file"
            raise UserError(f"{path}, after entry {number}: {found}, expected ',' or ']'; fetch it again, or fix it")


def read_element(ahead: TextAhead, number: int) -> Any:
    """The value at ``ahead.at``, which is moved behind it."""
    ahead.next_sign()
    while True:
        try:
            value, end = json.JSONDecoder().raw_decode(ahead.text, ahead.at)
        except (ValueError, RecursionError) as error:
            if len(ahead.text) - ahead.at < LARGEST_ELEMENT and ahead.fill():
                continue
            raise UserError(
                f"{ahead.path}, entry {number}: no JSON ({one_line(error)[:80]}); fetch it again, or fix the entry"
            ) from None
        # A number may have more of it: digits, or what follows ".", "e" and "e-".
        if isinstance(value, int | float) and len(ahead.text) - end <= 2 and ahead.fill():
            continue
        ahead.at = end
        return value
