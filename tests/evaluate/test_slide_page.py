"""The page of a slide board: it shows what the board says, in a browser that may ask no network."""

import html
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from page_browser import chromium, console, open_page, prefer, requests, resize
from simulated_heads import EVERYTHING, K, write_slide_runs

from stexpr.config.slides import SlideProtocol, SlideSplit
from stexpr.evaluate.page import slide_figures
from stexpr.evaluate.page.slides import publish_slides, write_slide_page
from stexpr.evaluate.slides.board import SlideBoard
from stexpr.evaluate.slides.resampling import Draws

EVIL = "</script><script>document.title='broken'</script> on enc features"
COLOR = "gated_attention on enc color"
HEADS = {"gated_attention on enc features": 2.0, EVIL: 1.0, COLOR: 0.3}
DRAWS = Draws(replicates=30, permutations=59, swaps=59)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[SlideBoard, Path]:
    folder = tmp_path_factory.mktemp("slides")
    rules = SlideProtocol(
        targets=EVERYTHING[:3], split=SlideSplit(k=K), confounders=("site",), subgroups=("sex",), published="kather"
    )
    write_slide_runs(folder / "runs", HEADS, protocol=rules)
    return publish_slides(folder / "runs", folder / "board", draws=DRAWS), folder / "board"


def embedded(page: Path, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


def groups(figure: dict[str, Any]) -> set[str]:
    return {trace["meta"]["group"] for trace in figure["data"] if "group" in trace["meta"]}


def test_publishing_writes_text_tables_pictures_and_page(published: tuple[SlideBoard, Path]) -> None:
    board, folder = published
    names = {path.name for path in folder.iterdir()}
    assert {"index.html", "leaderboard.md", "leaderboard.csv", "forest.png", "survival.png"} <= names
    text = (folder / "index.html").read_text(encoding="utf-8")
    for sentence in (board.title, *board.notes, *(sentence for _, sentence in board.card)):
        assert html.escape(sentence) in text
    for link in re.findall(r'<a href="([^"#]+)" download>', text):
        assert link in names


def test_the_same_board_gives_the_same_bytes(published: tuple[SlideBoard, Path], tmp_path: Path) -> None:
    board, folder = published
    assert write_slide_page(board, tmp_path).read_bytes() == (folder / "index.html").read_bytes()
    other = write_slide_page(replace(board, notes=["another"]), tmp_path).read_bytes()
    assert other != (folder / "index.html").read_bytes()


def test_figures_hold_the_numbers_of_the_board(published: tuple[SlideBoard, Path]) -> None:
    board, folder = published
    page, heads = folder / "index.html", set(HEADS) - {COLOR}
    targets = board.targets.set_index(["model", "target"])
    forest = embedded(page, "forest-binary-plot-data")
    assert groups(forest) == heads
    (trace,) = [one for one in forest["data"] if one["meta"].get("group") == board.leader and one["meta"]["role"] == "network"]
    order = forest["layout"]["meta"]["names"]
    assert trace["x"] == pytest.approx(targets.loc[[(board.leader, name) for name in order], "score"].tolist(), abs=1e-5)
    assert groups(embedded(page, "volcano-plot-data")) == heads
    curves = embedded(page, "survival-curves-plot-data")
    assert groups(curves) == {slide_figures.label_of("OS", head) for head in HEADS}
    steps = [one for one in curves["data"] if one.get("name") == "high risk" and one["meta"]["group"].endswith(board.leader)]
    expected = board.survival.curves.query("model == @board.leader and group == 'high risk'")
    np.testing.assert_allclose(steps[0]["y"], expected["survival"], atol=1e-5)
    counts = [one for one in curves["data"] if one.get("mode") == "text" and one["meta"]["group"].endswith(board.leader)]
    table = board.survival.at_risk.query("model == @board.leader")
    assert [int(n) for trace in counts for n in trace["text"]] == table["at_risk"].tolist()
    assert groups(embedded(page, "reliability-plot-data")) == {
        slide_figures.label_of(target, head) for target in ("PLANTED", "NULL") for head in HEADS
    }
    assert groups(embedded(page, "values-plot-data")) == groups(embedded(page, "differences-plot-data"))


def test_tables_are_whole_without_scripts(published: tuple[SlideBoard, Path]) -> None:
    board, folder = published
    text = (folder / "index.html").read_text(encoding="utf-8")
    tables = {name: whole for whole, name in re.findall(r'(<table id="([a-z]+)-table".*?</table>)', text, re.DOTALL)}
    assert {"models", "binary", "fraction", "survival", "risk", "comparisons", "published", "calibration"} <= set(tables)
    rows = [["".join(cell.itertext()).strip() for cell in row] for row in ElementTree.fromstring(tables["models"]).iter("tr")]
    assert [row[1] for row in rows[1:]] == board.models["model"].tolist()
    assert len(list(ElementTree.fromstring(tables["comparisons"]).iter("tr"))) == len(board.comparisons) + 1
    assert ">nan<" not in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def test_it_opens_without_network_or_complaint_at_any_width(browser: Any, published: tuple[SlideBoard, Path]) -> None:
    board, folder = published
    page = folder / "index.html"
    requests(browser)
    console(browser)
    for width, scheme in ((1280, "light"), (400, "dark")):
        prefer(browser, scheme)
        resize(browser, width)
        open_page(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert requests(browser) == {page.as_uri()}
    assert console(browser) == []
    assert browser.title == f"{board.title} · leaderboard"
    assert browser.execute_script("return document.querySelectorAll('main img, main script, main b').length") == 0


def test_a_picker_moves_every_figure_it_stands_for(browser: Any, published: tuple[SlideBoard, Path]) -> None:
    from selenium.webdriver.support.ui import Select

    board, folder = published
    resize(browser, 1280)
    open_page(browser, folder / "index.html")
    visible = (
        "return ['volcano-plot', 'forest-binary-plot'].map((id) => [...new Set(document.getElementById(id).data"
        ".filter((trace) => trace.visible === true && trace.meta.group).map((trace) => trace.meta.group))])"
    )
    assert browser.execute_script(visible) == [[board.leader]] * 2
    Select(browser.find_element("css selector", "select[data-for~='volcano-plot']")).select_by_visible_text(EVIL)
    assert browser.execute_script(visible) == [[EVIL]] * 2
