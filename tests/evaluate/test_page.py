"""The page in a real browser: it shows what the board says, asks no network and can be used by keyboard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_boards import EVIL_GENE, EVIL_MODEL, GENES, LONG_MODEL, MODELS, make_board, make_maps
from page_browser import chromium, console, open_page, prefer, requests, resize, wait

from stexpr.evaluate.page.build import write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(make_board(), tmp_path_factory.mktemp("page"), maps=make_maps())


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(session: Any, page: Path) -> Any:
    resize(session, 1280)
    prefer(session, "light")
    if session.current_url != page.as_uri():
        open_page(session, page)
    return session


def test_it_opens_without_network_or_complaint(browser: Any, page: Path) -> None:
    requests(browser)
    console(browser)
    open_page(browser, page)
    assert requests(browser) == {page.as_uri()}
    assert console(browser) == []


def test_the_policy_refuses_every_network(browser: Any, page: Path) -> None:
    ask = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), { once: true });
        new Image().src = "http://127.0.0.1:9/spy.png";
    """
    assert browser.execute_async_script(ask) == "img-src"
    inject = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), { once: true });
        const script = document.createElement("script");
        script.textContent = "document.title = 'broken'";
        document.body.append(script);
    """
    assert browser.execute_async_script(inject) == "script-src-elem"
    console(browser)


def test_names_stay_text(browser: Any) -> None:
    assert browser.title == "planted <cohort>, protocol stexpr · leaderboard"
    assert column(browser, "models-table", 1) == list(MODELS)
    assert column(browser, "genes-table", 1)[0] == EVIL_GENE
    assert [option.get_attribute("value") for option in all_of(browser, "#map-genes option")] == GENES[:10]
    assert EVIL_MODEL in [option.text for option in all_of(browser, "#map-model option")]
    assert browser.execute_script("return document.querySelectorAll('main img, main script, main b').length") == 0
    labels = browser.execute_script("return [...document.querySelectorAll('#scores-plot .ytick text')].map(t => t.textContent)")
    assert labels[:2] == ["tiny + aux", "tiny"]
    assert labels[2].startswith("</script><")
    assert len(labels[3]) == 34
    assert labels[3][:10] == LONG_MODEL[:10]
    assert labels[3][-10:] == LONG_MODEL[-10:]


def all_of(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", selector)
    return found


def one(browser: Any, selector: str) -> Any:
    (found,) = all_of(browser, selector)
    return found


def column(browser: Any, table: str, place: int) -> list[str]:
    cells = f"return [...document.querySelectorAll('#{table} tbody tr')].map((row) => row.cells[{place}].textContent)"
    found: list[str] = browser.execute_script(cells)
    return found


def heading(browser: Any, table: str, name: str) -> Any:
    (found,) = [head for head in all_of(browser, f"#{table} thead th") if head.text.split("\n")[0].strip() == name]
    return found


def test_models_sort_by_click_and_by_keyboard_undefined_last(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    by_r2 = sorted(MODELS, key=lambda name: -make_board().models.set_index("model")["r2"][name])
    heading(browser, "models-table", "R²").click()
    wait(lambda: column(browser, "models-table", 1) == by_r2, "a click did not sort by R²")
    assert heading(browser, "models-table", "R²").get_attribute("aria-sort") == "descending"
    head = heading(browser, "models-table", "r")
    one_focusable = browser.execute_script("return arguments[0].querySelector('[tabindex]') ?? arguments[0]", head)
    one_focusable.send_keys(Keys.ENTER)
    falling = ["neighbor oracle", *list(MODELS)[:5], "training mean"]
    wait(lambda: column(browser, "models-table", 1) == falling, "Enter did not sort by r")
    one_focusable.send_keys(Keys.ENTER)
    rising = [*falling[-2::-1], "training mean"]
    wait(lambda: column(browser, "models-table", 1) == rising, "Enter did not turn the order round")


def test_models_and_genes_are_filtered(browser: Any) -> None:
    search = one(browser, "#models .dt-search input")
    search.send_keys("reference")
    wait(lambda: column(browser, "models-table", 1) == ["neighbor oracle"], "the filter shows other models")
    search.clear()
    search.send_keys("x")
    search.send_keys("\b")
    wait(lambda: len(column(browser, "models-table", 1)) == len(MODELS), "the cleared filter hides models")
    search = one(browser, "#genes .dt-search input")
    search.send_keys("GENE29")
    wait(lambda: column(browser, "genes-table", 1) == ["GENE29"], "the filter shows other genes")
    assert column(browser, "genes-table", 5) == ["no"]  # predictable
    search.clear()
    search.send_keys("x")
    search.send_keys("\b")


def test_kinds_differ_by_more_than_color(browser: Any) -> None:
    kinds = column(browser, "models-table", 2)
    assert set(kinds) == {"◆ reference", "● network", "■ baseline"}
    symbols = browser.execute_script(
        "return document.getElementById('scores-plot').data.map((trace) => [trace.name, trace.marker.symbol])"
    )
    assert {name: symbol for name, symbol in symbols if name in ("network", "baseline", "reference")} == {
        "network": "circle",
        "baseline": "square",
        "reference": "diamond",
    }


def pixels(browser: Any, panel: str) -> str:
    picture: str = browser.execute_script(f"return document.getElementById('map-{panel}').toDataURL()")
    return picture


def facts(browser: Any) -> str:
    text: str = one(browser, "#map-facts").text
    return text


def choose(browser: Any, gene: str) -> None:
    field = one(browser, "#map-gene")
    field.clear()
    field.send_keys(gene)
    field.send_keys("\n")


def test_the_map_shows_the_measured_gradient(browser: Any) -> None:
    choose(browser, EVIL_GENE)
    wait(lambda: "rank 1" in facts(browser), "the first gene is not shown")
    wait(lambda: browser.execute_script("return !document.querySelector('#panel-histology').hidden"), "no picture")
    sample = """
        const canvas = document.getElementById("map-measured");
        const data = JSON.parse(document.getElementById("maps-data").textContent).sections[0];
        const bytes = Uint8Array.from(atob(data.x), (letter) => letter.charCodeAt(0));
        const x = new Int16Array(bytes.buffer);
        const rows = Uint8Array.from(atob(data.y), (letter) => letter.charCodeAt(0));
        const y = new Int16Array(rows.buffer);
        const scale = canvas.width / data.width / 8;
        return [0, 1, 2, 3, 4, 5].map((i) => [...canvas.getContext("2d").getImageData(x[i] * scale, y[i] * scale, 1, 1).data]);
    """
    colors = np.array(browser.execute_script(sample), dtype=float)[:, :3]
    light = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 10).all()  # viridis gets lighter with the value, which rises to the right
    low, high = (one(browser, f"#ends-measured span:nth-child({i})").text for i in (1, 2))
    assert (low, high) == ("0.00", "5.00")
    histology = browser.execute_script(
        sample.replace("map-measured", "map-histology").replace("[0, 1, 2, 3, 4, 5]", "[0, 1, 2]")
    )
    assert np.array(histology)[:, :3].max() < 60  # the black square under each spot


def test_gene_model_and_section_change_the_maps(browser: Any) -> None:
    from selenium.webdriver.support.select import Select

    choose(browser, "GENE1")
    wait(lambda: facts(browser).startswith("GENE1, rank 2, in section S1"), "GENE1 is not shown")
    assert "noise ceiling 0.87 (depth-blind 0.77)" in facts(browser)
    before = {panel: pixels(browser, panel) for panel in ("measured", "predicted", "residual")}
    one(browser, "#map-next").click()
    wait(lambda: facts(browser).startswith("GENE2, "), "Next does not show the next gene")
    assert all(pixels(browser, panel) != picture for panel, picture in before.items())
    one(browser, "#map-previous").click()
    assert {panel: pixels(browser, panel) for panel in before} == before
    Select(one(browser, "#map-model")).select_by_index(1)
    assert pixels(browser, "measured") == before["measured"]
    assert pixels(browser, "predicted") != before["predicted"]
    shared = one(browser, "#map-shared")
    shared.click()
    ends = [one(browser, f"#ends-{panel}").text for panel in ("measured", "predicted")]
    assert ends[0] == ends[1]
    shared.click()
    Select(one(browser, "#map-section")).select_by_index(1)
    assert "in section S2 (patient P2)" in facts(browser)
    assert not one(browser, "#panel-histology").is_displayed()
    choose(browser, "GENE7")
    wait(lambda: facts(browser) == "GENE7 is not in the panel of the fold that tested section S2 (patient P2).", "no word")
    assert not one(browser, "#map-panels").is_displayed()
    choose(browser, "NONE")
    wait(lambda: facts(browser) == "There are no maps of NONE.", "no word on an unknown gene")
    Select(one(browser, "#map-section")).select_by_index(0)
    button = next(button for button in all_of(browser, "#genes-table td button") if button.text == "GENE3")
    browser.execute_script("arguments[0].click()", button)
    assert facts(browser).startswith("GENE3, ")


def test_what_has_no_maps_is_named(browser: Any) -> None:
    text = one(browser, "#maps h2 + .about").text
    assert "Without maps: 20 genes (GENE10, GENE11, " in text
    assert "and 8 more)" in text
    assert "1 section (S3)" in text
    assert "5 models (tiny + aux, " in text


def test_colors_follow_the_system_and_the_button(browser: Any, page: Path) -> None:
    def colors() -> tuple[str, str]:
        found = browser.execute_script(
            "return [getComputedStyle(document.body).backgroundColor, document.getElementById('scores-plot').layout.font.color]"
        )
        return tuple(found)

    browser.execute_script("localStorage.clear()")
    open_page(browser, page)
    light = colors()
    prefer(browser, "dark")
    open_page(browser, page)
    dark = colors()
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    one(browser, "#theme").click()
    wait(lambda: colors() == light, "the button does not change the colors of page and figures")
    open_page(browser, page)
    assert colors() == light  # and is remembered
    browser.execute_script("localStorage.clear()")
    console(browser)


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_reaches_over_the_edge(browser: Any, page: Path, width: int) -> None:
    resize(browser, width)
    open_page(browser, page)
    size = "return [document.documentElement.scrollWidth, innerWidth]"
    wide, inner = browser.execute_script(size)
    assert wide <= inner == width
    over = """
        return [...document.querySelectorAll("main *")].filter((part) => !part.closest(".dt-layout-table, .hidden, svg, .plot")
            && part.getBoundingClientRect().right > innerWidth + 0.5).map((part) => part.outerHTML.slice(0, 80));
    """
    assert browser.execute_script(over) == []
    apart = """
        const plots = [...document.querySelectorAll(".plot")];
        return plots.every((plot) => plot.querySelector(".main-svg").getBoundingClientRect().bottom
            <= plot.closest("section").getBoundingClientRect().bottom + 1);
    """
    assert browser.execute_script(apart)
    table = one(browser, "#models .dt-layout-table")
    assert browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", table)
    assert table.get_attribute("tabindex") == "0"
    assert console(browser) == []


def test_pickers_of_figures_show_one_model(browser: Any, page: Path) -> None:
    from selenium.webdriver.support.select import Select

    open_page(browser, page)
    shown = (
        "return [...new Set(document.getElementById('ceiling-plot').data"
        ".filter((trace) => trace.meta.group !== undefined && trace.visible).map((trace) => trace.meta.group))]"
    )
    assert browser.execute_script(shown) == ["tiny + aux"]
    Select(one(browser, "select[data-for='ceiling-plot']")).select_by_visible_text("color ridge")
    assert browser.execute_script(shown) == ["color ridge"]


def test_every_control_has_a_name(browser: Any) -> None:
    controls = all_of(browser, "button, input, select")
    assert len(controls) > 10
    assert [control.get_attribute("outerHTML") for control in controls if not control.accessible_name] == []
    assert [head.text for head in all_of(browser, "h1, h2") if not head.text] == []


def test_links_lead_to_files_and_sections(browser: Any, page: Path) -> None:
    links = [link.get_attribute("href") for link in all_of(browser, "#downloads a")]
    assert [Path(link).name for link in links] == ["leaderboard.csv", "per_gene.csv", "patients.csv", "comparisons.csv"]
    assert all((page.parent / Path(link).name).is_file() for link in links)
    places = [link.get_attribute("href").partition("#")[2] for link in all_of(browser, "header nav a")]
    assert places == [section.get_attribute("id") for section in all_of(browser, "main > section")]
