"""Makes one HTML file of a report's Markdown text and its pictures, to be sent: it loads nothing and runs nothing.

What it expects of the text beyond CommonMark and tables: it begins with ``# TITLE``; ``![alt](name.png)`` in a
paragraph of its own is a figure, and the paragraph after it the caption, unless that is a picture or a warning itself;
a paragraph or list item that begins with ``**Warning:`` is a warning; a table's first column names its rows. HTML,
character references and ``<http://…>`` are shown as they are written: names of arms and ids are data.
"""

from __future__ import annotations

import base64
import itertools
import re
import string
import struct
from collections import defaultdict
from html import escape
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.common.normalize_url import validateLink
from markdown_it.token import Token

from utils.errors import UserError

TEMPLATE = Path(__file__).resolve().with_name("template.html")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NUMBER = re.compile(r"[-+<]? ?\.?\d|n/a$|nan$|[-+]?inf$")


def html_page(markdown: str, pictures: Path) -> str:
    """The text of the one file; ``pictures`` is the directory in which the images that ``markdown`` names lie.

    Raises UserError where the text does not begin with a title, or an image is not a PNG file in ``pictures``.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["autolink", "entity"])
    # The parser would leave an image with a file: URL standing as text; embed has it refused like any other URL.
    parser.validateLink = lambda url: True  # type: ignore[method-assign]
    tokens = parser.parse(markdown)
    if not tokens or tokens[0].tag != "h1":
        raise UserError("the report's text does not begin with a title, expected '# TITLE' first: put one there")
    embed(tokens, pictures)
    set_heading_ids(tokens)
    mark_warnings(tokens)
    tokens = in_containers(in_figures(tokens))

    def rendered(part: list[Token]) -> str:
        return parser.renderer.render(part, parser.options, {})

    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(text_of(tokens[1])),
        heading=rendered(tokens[:3]),
        contents=contents(tokens),
        body=rendered(tokens[3:]),
    )


def text_of(inline: Token) -> str:
    return "".join(" " if child.type == "softbreak" else child.content for child in inline.children or ())


# Pictures


def png_bytes(name: str, directory: Path) -> bytes:
    """The bytes of a PNG file. Raises UserError where ``name`` is more than a name, or not that of a PNG file."""
    if name in ("", ".", "..") or set(name) & set("/\\:"):
        raise UserError(
            f"the report names the image {name!r}, expected the plain name of a file in {directory}: put the picture "
            "there and name it without a path"
        )
    path = directory / name
    if not path.is_file():
        raise UserError(f"{path} is missing, expected the picture that the report names: make the report again")
    content = path.read_bytes()
    if not content.startswith(PNG_SIGNATURE) or len(content) < 24:
        raise UserError(f"{path} is not a PNG file, expected one by its first bytes: make the report again")
    return content


def embed(tokens: list[Token], pictures: Path) -> None:
    """Put each image's bytes in the place of its name, with its size, so that nothing moves while a page is laid out.

    Raises UserError as ``png_bytes`` does.
    """
    for child in (child for token in tokens for child in token.children or ()):
        if child.type == "image":
            content = png_bytes(unquote(str(child.attrs["src"])), pictures)
            width, height = struct.unpack(">II", content[16:24])
            source = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
            child.attrs |= {"src": source, "width": width, "height": height}
        elif child.type == "link_open" and not validateLink(str(child.attrs["href"])):
            child.attrs.clear()  # javascript: and its like; the text remains


def is_picture(tokens: list[Token]) -> bool:
    """Whether the tokens begin with a paragraph that holds an image and nothing else."""
    if len(tokens) < 3 or tokens[0].type != "paragraph_open" or tokens[0].level > 0:
        return False
    return [child.type for child in tokens[1].children or ()] == ["image"]


def is_caption(tokens: list[Token]) -> bool:
    """Whether the tokens begin with a paragraph that may belong to the picture before it."""
    is_text = bool(tokens) and tokens[0].type == "paragraph_open" and tokens[0].level == 0
    return is_text and not is_picture(tokens) and not is_warning(tokens[1])


def in_figures(tokens: list[Token]) -> list[Token]:
    found: list[Token] = []
    while tokens:
        if not is_picture(tokens[:3]):
            found.append(tokens[0])
            tokens = tokens[1:]
            continue
        opening, image, closing = tokens[:3]
        opening.tag = closing.tag = "figure"
        opening.attrs = {"class": "picture"}
        caption = tokens[3:6] if is_caption(tokens[3:6]) else []
        for token in caption[::2]:
            token.tag = "figcaption"
        found += [opening, image, *caption, closing]
        tokens = tokens[3 + len(caption) :]
    return found


# Headings and warnings


def set_heading_ids(tokens: list[Token]) -> None:
    """Ids from the headings' text; of equal ones the second ends in -2, the third in -3."""
    taken = set()
    for heading, inline in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            base = re.sub(r"\W+", "-", text_of(inline).lower()).strip("-") or "section"
            name, count = base, 1
            while name in taken:
                count += 1
                name = f"{base}-{count}"
            taken.add(name)
            heading.attrs["id"] = name


def contents(tokens: list[Token]) -> str:
    """The list of the second-level headings; nothing where there is none."""
    items = [
        f'<li><a href="#{escape(str(heading.attrs["id"]))}">{escape(text_of(inline))}</a></li>'
        for heading, inline in itertools.pairwise(tokens)
        if heading.type == "heading_open" and heading.tag == "h2"
    ]
    return "\n".join(['<nav aria-label="Contents">', "<ol>", *items, "</ol>", "</nav>"]) if items else ""


def is_warning(inline: Token) -> bool:
    """Whether the text begins with ``**Warning:``."""
    children = [child for child in inline.children or () if child.type != "text" or child.content][:2]
    return len(children) == 2 and children[0].type == "strong_open" and children[1].content.startswith("Warning:")


def mark_warnings(tokens: list[Token]) -> None:
    for i, token in enumerate(tokens):
        if token.type == "inline" and tokens[i - 1].type == "paragraph_open" and is_warning(token):
            holder = tokens[i - 2] if i > 1 and tokens[i - 2].type == "list_item_open" else tokens[i - 1]
            holder.attrs["class"] = "warning"


# Tables


def set_cells(table: list[Token]) -> None:
    """Headings say what they head; a column flush right remains so where it holds numbers, and is else flush left."""
    columns: dict[int, list[int]] = defaultdict(list)
    column = 0
    for i, token in enumerate(table):
        if token.type == "tr_open":
            column = 0
        elif token.type in ("th_open", "td_open"):
            columns[column].append(i)
            column += 1
    for column, (head, *cells) in columns.items():
        texts = [text_of(table[i + 1]) for i in cells]
        is_right = "right" in str(table[head].attrs.get("style", ""))
        is_number = is_right and all(NUMBER.match(text) for text in texts if text)
        for i in (head, *cells):
            table[i].attrs = {"class": "number"} if is_number else {}
        table[head].attrs["scope"] = "col"
        for i in cells if column == 0 else ():
            table[i].tag = table[i + 2].tag = "th"
            table[i].attrs["scope"] = "row"


def in_containers(tokens: list[Token]) -> list[Token]:
    """Each table in an element that scrolls sideways, by keyboard too, so that the page need not."""
    found: list[Token] = []
    start = count = 0
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            start, count = i, count + 1
            label = {"class": "table", "role": "region", "aria-label": f"Table {count}", "tabindex": "0"}
            found.append(Token("container_open", "div", 1, attrs=dict(label), block=True))
        found.append(token)
        if token.type == "table_close":
            set_cells(tokens[start:i])
            found.append(Token("container_close", "div", -1, block=True))
    return found
