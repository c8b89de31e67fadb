"""results.page.html: the tokens it makes, and the page in a real browser, opened as a reader opens it."""

from __future__ import annotations

import base64
import functools
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results import report
from results.page.html import html_page
from results.page.markdown import align, markdown_of
from results.page.run import blocks_of, captions, title_of, training_section
from results.plots.curves import new_figure, save
from results.read.run import read_run
from tests.results.read.test_logged import add_measures
from tests.results.studies import write_arm_of_study
from tests.results.test_report import write_run
from utils.errors import UserError

SIDE_BY_SIDE = "The arms are over different numbers of steps"
ARMS = (
    "top",
    "around-positive:10±40",
    "<b>bold</b> & co",
    "ranks:1-20|ranks:181-200",
    "top_bottom-then-random-after-the-fifth-refresh-seed-1337",
    "bottom",
)


def finals_table() -> str:
    metrics = ["nDCG@10", "MRR@10", "MAP@10", "recall@20", "recall@100", "recall@1000", "hole@10"]
    rows = [["", *metrics, "gain", "steps", "refreshes", "seconds"]]
    for i, arm in enumerate(ARMS):
        level = 0.25 - i / 100
        values = [f"{level + offset:.4f}" for offset in (0.05, 0, -0.01, 0.2, 0.3, 0.5, 0.6)]
        rows.append([arm, *values, f"{18.5 - 5 * i:+.1f}%", "120,000", "48", f"{31_415.9 + i:,.1f}"])
    return align(rows)


def intervals_table() -> str:
    rows = [["arm", "strategy", "mrr@10 (95% over seeds)", "ndcg@10 (95% over seeds)", "seconds an arm"]]
    rows += [[a, f"`{a}`", "0.2500 (0.2391 to 0.2609)", "0.3000 (0.2874 to 0.3126)", "31416"] for a in ARMS]
    return align(rows)


def pairs_table() -> str:
    rows = [["pair", "difference", "of the A/A noise", "p", "p (Holm)", "p over seeds", "conclusion"]]
    for i, (a, b) in enumerate((a, b) for a in ARMS for b in ARMS if a < b):
        told = f"{a} better than {b}" if i < 5 else "cannot be told apart"
        seeds = "n/a" if i == 3 else f"{0.002 * (i + 1):.3g}"
        rows.append([f"{a} - {b}", f"{0.03 - i / 400:+.4f}", "2.1x", "5e-05", "0.00075", seeds, told])
    return align(rows)


REPORT = f"""# What the rank of the negatives does to convergence & quality

Made by `bash commands/study.sh --seeds "1 2 3" --arms "top=top near=around-positive:10±40 again=top@1000"`.

**Warning:** {SIDE_BY_SIDE} (top 120,000, <b>bold</b> & co 60,000): they do not differ in the strategy alone.

## Finals at step 120,000

{finals_table()}

- **Warning:** The arm `ranks:1-20|ranks:181-200` is not finished and omitted: no DONE.json in `checkpoints/`.
- **Warning:** The arm bottom was run with --negative_strategy `top`.

What was run:

- collection: 8,841,823 passages, 502,939 train queries, 6,980 dev queries
- warmup: `runs/a-long-directory-name/warmup/checkpoints/checkpoint-150000`, step 150,000; every arm starts from it
- near: negatives `around-positive:10±40`, 120,000 steps; see [the paper](https://arxiv.org/abs/2007.00808)

## Over the seeds

Mean over the runs with Student's interval; a pair is told apart below 0.01.

{intervals_table()}

## Pairs by mrr@10

{pairs_table()}

Metrics are means over all dev queries; one without an answer counts as zero. **Neighbouring arms of one run differ by
less than the noise between seeds: read no order into them without several seeds.**

## Curves

![dev metrics of each arm](dev.png)

Dev metrics of the checkpoint that each refresh was made from; the dashed line is the warmup checkpoint, which every
arm starts from.

![training loss of each arm](loss%20by%20step.png)

![dev nDCG@10 of each arm](small.png)

**Warning:** The levels of different collections cannot be compared.

## Curves

The same name twice, as two runs of one directory name have it.
"""


def draw(path: Path, columns: int, width: float) -> None:
    figure, panels = new_figure(columns, width, 4.5)
    steps = np.linspace(0, 120_000, 60)
    for axes in panels:
        for i, arm in enumerate(ARMS):
            axes.plot(steps, 0.2 + (0.06 - i / 100) * (1 - np.exp(-steps / 3e4)), label=arm[:24])
        axes.set_xlabel("step")
        axes.set_ylabel("MRR@10")
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    for name, columns, width in (("dev.png", 2, 11), ("loss by step.png", 1, 11), ("small.png", 1, 6)):
        draw(directory / name, columns, width)
    return directory


@pytest.fixture(scope="module")
def html(pictures: Path) -> str:
    return html_page(REPORT, pictures)


def without_pictures(html: str) -> str:
    return re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "PICTURE", html)


# The text


def test_names_are_data(html: str) -> None:
    assert "<b>" not in html and "&lt;b&gt;bold&lt;/b&gt; &amp; co</th>" in html
    assert ">ranks:1-20|ranks:181-200</th>" in html and "<code>ranks:1-20|ranks:181-200</code>" in html
    odd = html_page(
        "# <script>alert(1)</script>\n\n&lt;i> <http://a.example/> [x](javascript:y) $body\n\n## $x &\n", Path()
    )
    assert "<title>&lt;script&gt;alert(1)&lt;/script&gt;</title>" in odd and "<script" not in odd
    assert "<p>&amp;lt;i&gt; &lt;http://a.example/&gt; <a>x</a> $body</p>" in odd
    assert '<a href="#x">$x &amp;</a>' in odd and "javascript:" not in odd


def test_pictures_are_inside_and_whole(html: str, pictures: Path) -> None:
    found = [base64.b64decode(text) for text in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]
    assert found == [(pictures / name).read_bytes() for name in ("dev.png", "loss by step.png", "small.png")]
    assert re.findall(r'alt="([^"]+)" width="(\d+)" height="(\d+)"', without_pictures(html)) == [
        ("dev metrics of each arm", "1430", "585"),
        ("training loss of each arm", "1430", "585"),
        ("dev nDCG@10 of each arm", "780", "585"),
    ]


def test_a_caption_is_the_paragraph_after_a_picture_alone(html: str) -> None:
    figures = re.findall(r'<figure class="picture">(.*?)</figure>', without_pictures(html), re.S)
    captions = [re.findall(r"<figcaption>(.*?)</figcaption>", figure, re.S) for figure in figures]
    assert [len(found) for found in captions] == [1, 0, 0]  # the next is a picture; the next is a warning
    assert captions[0][0].startswith("Dev metrics of the checkpoint") and captions[0][0].endswith("arm starts from.")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("![a](gone.png)", r"gone\.png is missing, expected the picture that the report names: make the report again"),
        ("![a](../dev.png)", r"names the image '\.\./dev\.png', expected the plain name of a file in .*: put"),
        ("![a](/tmp/dev.png)", "expected the plain name of a file"),
        ("![a](%2Ftmp%2Fdev.png)", "expected the plain name of a file"),
        (r"![a](C:\dev.png)", "expected the plain name of a file"),
        ("![a](https://a.example/dev.png)", "expected the plain name of a file"),
        ("![a](file:///dev.png)", "expected the plain name of a file"),
        ("![a](data:image/png;base64,AAAA)", "expected the plain name of a file"),
        ("![a]()", "expected the plain name of a file"),
        ("- in a list: ![a](gone.png)", r"gone\.png is missing"),
        ("![a](note.png)", r"note\.png is not a PNG file"),
    ],
)
def test_an_image_that_is_not_a_picture_beside_the_text(tmp_path: Path, image: str, message: str) -> None:
    (tmp_path / "note.png").write_text("not drawn yet, and longer than a header")
    with pytest.raises(UserError, match=message) as error:
        html_page(f"# Report\n\n{image}\n", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "No title.\n", "## Second level\n\n# First\n"])
def test_a_text_without_a_title_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="does not begin with a title, expected '# TITLE' first"):
        html_page(text, Path())


def test_headings_have_ids_of_their_own_and_the_contents_lists_them(html: str) -> None:
    ids = re.findall(r'<h\d id="([^"]*)"', html)
    assert ids[1:] == ["finals-at-step-120-000", "over-the-seeds", "pairs-by-mrr-10", "curves", "curves-2"]
    nav = html.partition("<nav")[2].partition("</nav>")[0]
    assert re.findall(r'href="#([^"]+)"', nav) == ids[1:]
    assert unescape(re.findall(r"<title>(.*)</title>", html)[0]) == REPORT.splitlines()[0].removeprefix("# ")
    again = html_page("# a\n\n## a\n\n## a-2\n\n### a\n\n### `±`\n", Path())
    assert re.findall(r'<h\d id="([^"]*)"', again) == ["a", "a-2", "a-2-2", "a-3", "section"]
    assert "<nav" not in html_page("# Report\n\n### Deeper\n", Path())


def test_warnings_are_marked(html: str) -> None:
    found = re.findall(r'<(\w+) class="warning">\s*<strong>Warning:</strong> (.{20})', html)
    assert [tag for tag, _ in found] == ["p", "li", "li", "p"] and found[0][1] == SIDE_BY_SIDE[:20]
    assert html.count("<strong>") == 5  # the noise is bold and no warning
    loose = html_page("# R\n\n- **Warning:** a\n\n- b **Warning:** c\n", Path())
    assert loose.count('class="warning"') == 1 and '<li class="warning">\n<p><strong>' in loose


def test_tables_are_marked_up(html: str) -> None:
    tables = re.findall(r'<div class="table"[^>]* tabindex="0">\n<table>(.*?)</table>\n</div>', html, re.S)
    assert len(tables) == 3 and html.count("<table>") == 3
    finals, _, pairs = tables
    assert finals.count('scope="col"') == 12 and finals.count('scope="row"') == len(ARMS)
    assert finals.count('<th class="number" scope="col">') == 11 and finals.count('<td class="number">') == 11 * 6
    row = pairs.partition("<tbody>")[2].partition("</tr>")[0]
    assert "<td>" in row.splitlines()[-1] and row.count('class="number"') == 5  # the conclusion is text


def test_nothing_is_loaded_or_run(html: str) -> None:
    text = without_pictures(html).replace('<a href="https://arxiv.org/abs/2007.00808">', "")  # a link, followed by hand
    assert not re.search(r"https?:|//\w|<script|<link|@import|url\(|\son\w+=", text)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    assert '<html lang="en">' in text and '<meta charset="utf-8">' in text and 'name="viewport"' in text


def test_a_report_s_own_text_keeps_the_conventions(tmp_path: Path, pictures: Path) -> None:
    run = read_run(write_run(tmp_path / "run <b>"), "run <b>")
    for name in ("dev.png", "loss.png"):
        shutil.copy(pictures / "small.png", tmp_path / name)
    text = markdown_of(title_of([run]), blocks_of([run]), [training_section([run])])
    found = html_page(text, tmp_path)
    assert "<title>Report of run &lt;b&gt;</title>" in found
    shown = re.findall(r"<figcaption>(.*?)</figcaption>", found)
    told = captions("dev")
    assert list(map(unescape, shown)) == [told["dev.png"], told["loss.png"]]
    assert '<td class="number">+18.5%</td>' in found


@pytest.fixture(scope="module")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What results.report makes of a study whose arms have all that is logged."""
    root = tmp_path_factory.mktemp("study")
    for name, (strategy, level) in {"top": ("top", 0.3), "again": ("top", 0.3), "bottom": ("bottom", 0.2)}.items():
        for seed in (1, 2):
            arm = write_arm_of_study(root, name, seed, strategy, level)
            add_measures(arm, scale=1 / seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", str(root)])
        report.main()
    return (root / "report.html").read_text(encoding="utf-8")


# The page in a browser

CHROMIUM = shutil.which("chromium")


def lacking() -> str:
    """Why no browser can be started here; empty where one can."""
    if CHROMIUM is None:
        return "no chromium: apt-get install chromium"
    return "" if importlib.util.find_spec("playwright") else "no playwright: pip install -r requirements-dev.txt"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    reason = lacking()
    if reason and os.environ.get("ANCE_REQUIRE_BROWSER") == "1":
        pytest.fail(f"no browser, and ANCE_REQUIRE_BROWSER is 1: {reason}")
    if reason:
        pytest.skip(f"no browser: {reason}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # root, which containers run as, may not use the sandbox
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened_file(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file; the test fails where anything but files opened was asked for, or the browser complained."""
    asked: list[str] = []
    files: set[str] = set()
    complaints: list[str] = []
    contexts = []

    def open_page(path: Path, width: int, scheme: str = "light", media: str = "screen") -> Any:
        files.add(path.as_uri())
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.emulate_media(media=media, color_scheme=scheme)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
    assert {url for url in asked if not url.startswith("data:")} == files


@pytest.fixture
def opened(opened_file: Callable[..., Any], html: str, tmp_path: Path) -> Callable[..., Any]:
    """Opens the report written here."""
    path = tmp_path / "report of a run.html"
    path.write_text(html, encoding="utf-8")
    return functools.partial(opened_file, path)


TABLES = """() => [...document.querySelectorAll("div.table")].map(container => ({
    width: container.clientWidth,
    content: container.scrollWidth,
    overflow: getComputedStyle(container).overflowX,
    scrolled: (container.scrollLeft = 10_000, container.scrollLeft),
    stuck: container.querySelector("tbody th").getBoundingClientRect().left - container.getBoundingClientRect().left,
    sizes: [...container.querySelectorAll("th, td")].map(cell => parseFloat(getComputedStyle(cell).fontSize)),
    right: container.querySelector("table").getBoundingClientRect().right,
}))"""
COLOURS = """() => {
  const background = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
  };
  const hasText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  return [...document.querySelectorAll("body *")].filter(e => hasText(e) && e.checkVisibility())
    .map(e => [e.matches(".warning, .warning *") ? "warning" : e.localName, getComputedStyle(e).color, background(e)]);
}"""
SIDEWAYS = """() => [...document.querySelectorAll("body *")].filter(e => !e.closest("div.table table"))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"""

DISTORTED = """() => [...document.images]
    .filter(image => Math.abs(image.width / image.height / (image.naturalWidth / image.naturalHeight) - 1) > 0.02)
    .map(image => [image.alt, image.width, image.height])"""


def luminance(colour: str) -> float:
    """Relative luminance of an opaque ``rgb(r, g, b)``: WCAG 2.2."""
    assert re.fullmatch(r"rgb\(\d+, \d+, \d+\)", colour), colour
    shares = [int(value) / 255 for value in re.findall(r"\d+", colour)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_against_published_values() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.005)


def check_layout(page: Any) -> None:
    """Nothing lies beyond the page's right edge, and every picture is drawn, in its own proportions."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(SIDEWAYS) == []
    assert page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)") == [1430, 1430, 780]
    assert page.evaluate(DISTORTED) == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(w, s) for w in (400, 1400) for s in ("light", "dark")])
def test_screens(opened: Callable[..., Any], width: int, scheme: str) -> None:
    page = opened(width, scheme)
    check_layout(page)
    tables = page.evaluate(TABLES)
    for found in tables:
        assert found["overflow"] == "auto" and min(found["sizes"]) >= 12
        assert found["scrolled"] == pytest.approx(found["content"] - found["width"], abs=1)
        assert found["stuck"] == pytest.approx(0, abs=1)
    hidden = [found["content"] - found["width"] for found in tables]
    assert hidden == [0, 0, 0] if width == 1400 else min(hidden) > 100
    colours = page.evaluate(COLOURS)
    assert {"p", "th", "td", "a", "code", "li", "figcaption", "h2", "warning"} <= {what for what, _, _ in colours}
    assert {what: contrast(text, behind) for what, text, behind in colours if contrast(text, behind) < 4.5} == {}
    assert (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.05) == (scheme == "dark")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1400, "light")])
def test_the_page_of_a_study(
    opened_file: Callable[..., Any], study_page: str, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(study_page, encoding="utf-8")
    page = opened_file(path, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and page.evaluate(SIDEWAYS) == []
    assert min(page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)")) > 500
    assert page.locator("figure").count() == 6 and page.evaluate(DISTORTED) == []
    tables = page.evaluate(TABLES)
    assert len(tables) >= 6 and all(min(found["sizes"]) >= 12 and found["overflow"] == "auto" for found in tables)
    if width == 1400:
        assert [found["content"] - found["width"] for found in tables] == [0] * len(tables)
    assert [what for what, text, behind in page.evaluate(COLOURS) if contrast(text, behind) < 4.5] == []


@pytest.mark.slow
def test_the_contents_are_a_column_that_stays_on_wide_screens(opened: Callable[..., Any]) -> None:
    page = opened(1400)
    page.click("nav a >> nth=3")
    page.wait_for_function("scrollY > 900")
    boxes = {name: page.locator(name).first.bounding_box() for name in ("nav", "main", "#curves")}
    assert boxes["nav"]["x"] + boxes["nav"]["width"] <= boxes["main"]["x"] and 0 <= boxes["nav"]["y"] < 100
    assert 0 <= boxes["#curves"]["y"] < 100
    assert page.evaluate("document.querySelector('main p').getBoundingClientRect().width") < 720


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print(opened: Callable[..., Any], scheme: str) -> None:
    width = 210 / 25.4 * 96  # A4, in CSS pixels
    page = opened(int(width - 2 * 14 / 25.4 * 96), scheme, "print")
    check_layout(page)
    assert not page.locator("nav").is_visible()
    for found in page.evaluate(TABLES):
        assert found["overflow"] == "visible" and found["right"] <= page.evaluate("innerWidth")
    assert {behind for _, _, behind in page.evaluate(COLOURS)} <= {"rgb(255, 255, 255)"}
    assert {text for _, text, _ in page.evaluate(COLOURS)} <= {"rgb(0, 0, 0)", "rgb(51, 51, 51)"}
    pdf = page.pdf(format="A4", print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 1
    for box in re.findall(rb"/MediaBox\s*\[([^\]]+)\]", pdf):
        assert [float(number) for number in box.split()] == pytest.approx([0, 0, 595, 842], abs=1)
