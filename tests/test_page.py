"""The page of a report: what is in it, that it is well formed and readable, and how a browser gets on with it."""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from browser import find_browser, screenshot, visit
from hpcdml.cli import main
from hpcdml.observability.page import page
from hpcdml.observability.page.counts import grouped
from hpcdml.observability.page.style import STYLE
from hpcdml.observability.page.svg import line_path, tick_texts, ticks
from hpcdml.observability.page.time_line import choose, server_line, windows
from hpcdml.observability.view import views
from synthetic import write_run

VOID = {"meta", "link", "input", "br", "hr", "img"}
needs_browser = pytest.mark.skipif(find_browser() is None, reason="no chromium on the path: apt-get install chromium")


class Reader(HTMLParser):
    """Collects elements, ids and text, and fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    losp = write_run(
        folder / "losp", idle=(0.0005, 0.001), data=0.0005, steps=600, every=4, round_seconds=0.04, cpu=0.2
    )
    bsp = write_run(folder / "bsp", policy="bsp", idle=(0.01, 0.01), steps=300, every=1, cpu=0.2, lr=0.3)
    return [str(losp), str(bsp)]


def test_one_run(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "page.html"
    assert main.main(["report", runs[0], "--html", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    found = read(out.read_text(encoding="utf-8"))
    for words in (
        "Accuracy on the held-out data",
        "Training loss",
        "Staleness",
        "worker 1",
        "worker 2",
        "rank 0",
        "v7",
    ):
        assert words in found.text, words
    for words in ("batch_size", "node7", "is bounded by the workers' computing", "mpirun -n 5"):
        assert words in found.text, words
    ids = Counter(about["id"] for _, about in found.elements if "id" in about)
    assert max(ids.values()) == 1
    links = [about["href"] for tag, about in found.elements if tag == "a"]
    assert links and all(href and href.startswith("#") and href[1:] in ids for href in links)


def test_it_speaks_to_screen_readers_and_keyboards(runs: list[str]) -> None:
    found = read(page(views(runs)))
    tags = [tag for tag, _ in found.elements]
    assert ("html", {"lang": "en"}) in found.elements and tags.count("main") == tags.count("h1") == 1
    for tag, about in found.elements:
        if tag == "svg":
            named = about.get("role") == "img" and about.get("aria-label")
            assert named or about.get("aria-hidden") == "true"
        if tag == "th":
            assert about.get("scope") in ("row", "col")
        if about.get("class") == "scroll":
            assert about.get("tabindex") == "0" and about.get("aria-label")
    labels = {about["for"] for tag, about in found.elements if tag == "label"}
    assert labels == {about["id"] for tag, about in found.elements if tag == "input"}
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_several_runs_beside_one_another(runs: list[str]) -> None:
    found = read(page(views(runs)))
    assert "Samples a second: losp" in found.text and "Samples a second: bsp" in found.text
    assert "losp: the whole run" in found.text and "bsp: some rounds, step by step" in found.text
    assert sum(about.get("class") == "differs" for _, about in found.elements) == 2  # policy and lr
    assert "losp is bounded by" in found.text and "bsp is bounded by the server's link" in found.text


def test_nothing_of_a_run_can_become_part_of_the_page(tmp_path: Path) -> None:
    bad = '"><img src=http://127.0.0.1:9/x onerror=alert(1)><script>alert(2)</script>'
    run = write_run(tmp_path / "<b>bold", dataset=bad, model=bad)
    found = read(page(views([str(run)])))
    assert not {"img", "script", "b"} & {tag for tag, _ in found.elements} and bad in found.text


@pytest.mark.parametrize(
    "about",
    [
        {"steps": 0, "accuracy": ()},
        {"steps": 1, "every": 1},
        {"steps": 50, "every": 100},
        {"loss": (float("nan"), float("nan"))},
        {"accuracy": (float("nan"), float("nan"))},
        {"compute": [0.01] * 40, "idle": [0.001 * i for i in range(40)], "steps": 100},
        {"policy": "asp", "staleness": 300},
        {"round_seconds": 100.0},
        {"finish": False},
    ],
)
def test_odd_runs(tmp_path: Path, about: dict[str, object]) -> None:
    text = page(views([str(write_run(tmp_path, **about))]))  # type: ignore[arg-type]
    read(text)
    assert not re.search(r'd="[^"]*(nan|inf)', text)


@pytest.mark.slow
def test_a_million_steps_make_no_larger_page(tmp_path: Path) -> None:
    text = page(views([str(write_run(tmp_path, steps=500_000, every=20))]))
    assert len(text) < 600_000 and "500,000" in text


# What the drawings are made of


def test_ticks_are_round_and_tell_apart() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0]) and ticks(3, 3) == [3]
    assert tick_texts([0.95, 0.96]) == ["0.95", "0.96"] and tick_texts([0, 20_000, 40_000]) == ["0", "20k", "40k"]
    assert tick_texts([0, 2_000_000]) == ["0", "2M"]
    random = np.random.default_rng(0)
    for _ in range(200):
        low, high = np.sort(random.normal(size=2) * 10.0 ** random.integers(-6, 9))
        marks = ticks(low, high)
        assert 2 <= len(marks) <= 12 and low - 1e-9 * abs(low) <= marks[0] and len(set(tick_texts(marks))) == len(marks)


def test_lines_break_where_there_is_nothing() -> None:
    nan = float("nan")
    assert line_path(np.array([0.0, 1, 2, 3]), np.array([0.0, 1, nan, 1])) == "M0 0 1 1M1 1 5 1"
    assert line_path(np.array([]), np.array([])) == ""


def test_counts_in_groups() -> None:
    assert {k: int(v) for k, v in grouped(np.array([1, 1, 3])).items()} == {"1": 2, "2": 0, "3": 1}
    many = grouped(np.arange(100))
    assert len(many) == 20 and all(count == 5 for count in many.values()) and list(many)[0] == "0–4"


def test_of_many_workers_those_are_drawn_that_span_the_range(tmp_path: Path) -> None:
    view = views([str(write_run(tmp_path, [0.01] * 40, [0.001 * (i * 7 % 40) for i in range(40)], steps=50))])[0]
    chosen = choose(view.lines, 8)
    idle = [float(line.parts["idle"].sum()) for line in view.lines]
    drawn = {line.worker for line in chosen}
    assert len(drawn) == 8 and [line.worker for line in chosen] == sorted(drawn)
    assert {int(np.argmin(idle)) + 1, int(np.argmax(idle)) + 1} <= drawn


def test_the_parts_to_look_at_lie_within_the_run(runs: list[str]) -> None:
    view = views(runs[:1])[0]
    parts = windows(view.lines, server_line(view.rounds, view.evaluations), 0.0, 6.6)
    assert [title for title, _, _ in parts] == ["the beginning", "the middle", "the end", "around the longest round"]
    assert all(0.0 <= low < high <= 6.6 for _, low, high in parts)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def schemes() -> Iterator[dict[str, str]]:
    for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL):
        yield dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))


@pytest.mark.parametrize("scheme", list(schemes()), ids=["light", "dark"])
def test_everything_stands_out_against_its_background(scheme: dict[str, str]) -> None:
    assert len(scheme) == 22
    for name, colour in scheme.items():
        least = 1.0 if name in ("back", "card", "line") else 4.5 if name in ("ink", "soft") else 3.0
        for back in ("back", "card"):
            high, low = sorted((luminance(colour), luminance(scheme[back])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (name, back)


# In a browser


@pytest.fixture(scope="module")
def file(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(views(runs)), encoding="utf-8")
    return path


@needs_browser
def test_a_browser_has_nothing_to_say_and_nothing_to_fetch(file: Path, tmp_path: Path) -> None:
    seen = visit(file, tmp_path)
    assert seen.console == [] and seen.requests == []
    assert "What bounds it" in seen.document


@needs_browser
def test_errors_and_requests_would_have_been_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/a.png"><script>console.error("broken"); undefined.x</script>')
    seen = visit(bad, tmp_path)
    assert "broken" in seen.console and any("undefined" in line for line in seen.console)
    assert seen.requests == ["http://127.0.0.1:9/a.png"]


@needs_browser
def test_the_page_itself_forbids_requests(file: Path, tmp_path: Path) -> None:
    altered = tmp_path / "altered.html"
    text = file.read_text(encoding="utf-8")
    altered.write_text(text.replace("</main>", '<img src="http://127.0.0.1:9/a.png"></main>'), encoding="utf-8")
    seen = visit(altered, tmp_path)
    assert seen.requests == [] and any("Content Security Policy" in line for line in seen.console)


PROBE = """
<iframe id="frame" style="width: WIDTHpx; height: 900px; border: 0"></iframe><pre id="found"></pre>
<script>
const frame = document.getElementById("frame"), found = [];
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  found.push("overflow " + (root.scrollWidth - root.clientWidth));
  const shown = () => [...page.querySelectorAll(".views")].map(
    views => [...views.children].map(panel => getComputedStyle(panel).display != "none" ? 1 : 0).join("")).join(" ");
  found.push("shown " + shown());
  page.querySelectorAll("fieldset").forEach(set => [...set.querySelectorAll("input")].at(-1).click());
  found.push("clicked " + shown());
  const small = [...page.querySelectorAll("svg text")].filter(t => {
    const high = t.getBoundingClientRect().height;
    return high > 0 && high < 8;
  });
  found.push("small " + small.length);
  document.getElementById("found").textContent = found.join("; ");
};
frame.srcdoc = document.getElementById("page").textContent;
</script>
"""


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 700, 1400])
def test_it_fits_every_width_and_its_buttons_choose(file: Path, tmp_path: Path, width: int) -> None:
    probe = tmp_path / "probe.html"
    held = file.read_text(encoding="utf-8").replace("&", "&amp;").replace("<", "&lt;")
    probe.write_text(f'<meta charset="utf-8"><pre id="page" hidden>{held}</pre>' + PROBE.replace("WIDTH", str(width)))
    seen = visit(probe, tmp_path)
    found = re.search(r'id="found">([^<]*)<', seen.document)
    assert found is not None and seen.console == []
    assert found[1] == "overflow 0; shown 10 0100 0100; clicked 01 0001 0001; small 0"


def corner_lightness(png: bytes) -> float:
    """Lightness of the first pixel of a PNG, from 0 to 255."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8 and kind in (2, 6)
    size, at, packed = 3 if kind == 2 else 4, 8, b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            packed += png[at + 8 : at + 8 + length]
        at += length + 12
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * size)
    # The first pixel of the first row has no neighbours, so that no filter changes it.
    return float(rows[0, 1:4].mean())


@needs_browser
def test_light_and_dark(file: Path, tmp_path: Path) -> None:
    light = screenshot(file, tmp_path, 1200, 900, "--blink-settings=preferredColorScheme=1")
    dark = screenshot(file, tmp_path, 1200, 900, "--blink-settings=preferredColorScheme=0")
    assert corner_lightness(light) > 240 and corner_lightness(dark) < 40
