"""What goes into a page, without a browser: the border, the numbers of figures and tables, maps and their places."""

import html
import io
import json
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_boards import EVIL_MODEL, GENES, MODELS, make_board, make_map, make_maps
from PIL import Image
from planted_runs import make_predictions, make_record

from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError, ProtocolError
from stexpr.evaluate.leaderboard import Leaderboard, leaderboard
from stexpr.evaluate.page import figures, tables, words
from stexpr.evaluate.page.build import write_page
from stexpr.evaluate.page.maps import load_maps, within_budget
from stexpr.evaluate.page.payload import json_text, maps_payload, quantize
from stexpr.evaluate.page.view import BoardView, board_view
from stexpr.evaluate.records import Run


def embedded(page: Path, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


def large_view(n_models: int = 60, n_genes: int = 3000) -> BoardView:
    names = [f"m{i}" for i in range(n_models)]
    models = pd.concat([make_board().models.iloc[[0]]] * n_models, ignore_index=True).assign(model=names)
    r = pd.DataFrame(np.tile(np.linspace(1, 0, n_genes)[:, None], n_models), columns=names)
    genes = pd.DataFrame({"rank": range(1, n_genes + 1), "gene": [f"g{i}" for i in range(n_genes)], "n_patients": 3})
    genes = genes.assign(ceiling=0.9, unpredictable=False)
    patients = pd.DataFrame(0.4, index=pd.Index(names, name="model"), columns=["P1"])
    return board_view(make_board(models=models, genes=pd.concat([genes, r], axis=1), patients=patients))


def test_the_same_board_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        write_page(make_board(), tmp_path / folder, maps=make_maps())
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second"))
    assert first == second
    assert set(first) == {"index.html", "leaderboard.csv", "per_gene.csv", "patients.csv", "comparisons.csv"}
    write_page(make_board(notes=["another"]), tmp_path / "first", maps=make_maps())
    assert (tmp_path / "first" / "index.html").read_bytes() != second["index.html"]


def test_a_board_of_runs_becomes_a_page_with_the_files_of_the_board(
    write_runs: Callable[..., list[Run]], tmp_path: Path
) -> None:
    board = leaderboard(write_runs(folds=2, genes=5, replicates=20))
    board.write(tmp_path / "board")
    page = write_page(board, tmp_path / "page")
    for name in ("leaderboard.csv", "per_gene.csv", "comparisons.csv"):
        assert (tmp_path / "page" / name).read_bytes() == (tmp_path / "board" / name).read_bytes()
    patients = pd.read_csv(tmp_path / "page" / "patients.csv", index_col="model")
    np.testing.assert_allclose(patients, board.patients, atol=1e-6)
    text = page.read_text(encoding="utf-8")
    for sentence in (board.title, *board.notes, *(sentence for _, sentence in board.card)):
        assert html.escape(sentence) in text


def test_what_a_board_lacks_is_undefined_and_not_shown(tmp_path: Path) -> None:
    board = make_board(extras=False)
    view = board_view(board)
    assert view.models["ceiling"].isna().all()
    assert view.genes[["ceiling", "ceiling_low", "ceiling_high", "ceiling_depth_blind"]].isna().all(axis=None)
    assert not view.genes["unpredictable"].any()
    assert not view.has_ceiling
    text = write_page(board, tmp_path).read_text(encoding="utf-8")
    for part in ('id="ceiling-plot"', 'id="comparisons"', ">SSIM<", "<dt>ceiling</dt>"):
        assert part not in text
    assert "This page was made without maps." in text
    assert embedded(tmp_path / "index.html", "genes-data")["fixed"] == ["rank", "gene", "patients"]


def test_a_warning_of_the_card_stands_before_everything_else(tmp_path: Path) -> None:
    text = write_page(make_board(), tmp_path).read_text(encoding="utf-8")
    assert text.index("<strong>Warning.</strong> It &lt;leaks&gt;.") < text.index('<section id="protocol"')
    calm = write_page(make_board(card=[("Protocol", "stexpr")]), tmp_path).read_text(encoding="utf-8")
    assert "<strong>Warning.</strong>" not in calm


def test_the_verdict_is_the_first_note_where_a_network_is_on_the_board() -> None:
    view = board_view(make_board())
    assert (view.verdict, view.notes) == ("2 of 4 networks beat the color ridge.", ["A note with <b>tags</b>."])
    models = make_board().models.assign(kind="baseline")
    plain = board_view(make_board(models=models))
    assert (plain.verdict, len(plain.notes)) == ("", 2)
    assert (view.leading, plain.leading) == (0, 0)
    better = make_board().models.assign(kind=["baseline", *make_board().models["kind"][1:]])
    assert board_view(make_board(models=better)).leading == 1


def test_the_scores_figure_draws_the_board() -> None:
    view = board_view(make_board())
    drawn = {trace["name"]: trace for trace in figures.scores_figure(view)["data"]}
    networks = view.models[view.models["kind"] == "network"]
    np.testing.assert_allclose(numbers(drawn["network"]["x"]), networks["r"], rtol=1e-6)
    np.testing.assert_allclose(numbers(drawn["network"]["error_x"]["array"]), networks["r_high"] - networks["r"], rtol=1e-5)
    np.testing.assert_allclose(numbers(drawn["network"]["error_x"]["arrayminus"]), networks["r"] - networks["r_low"], rtol=1e-5)
    np.testing.assert_allclose(numbers(drawn["network"]["y"]), networks.index)
    np.testing.assert_allclose(numbers(drawn["one patient"]["x"]), view.patients.stack().to_numpy(), rtol=1e-6)
    assert len(numbers(drawn["baseline"]["x"])) == 1  # the training mean has no r …
    layout = figures.scores_figure(view)["layout"]
    assert [(note["y"], note["text"]) for note in layout["annotations"]] == [(5, "r undefined")]  # … and says so
    np.testing.assert_allclose(numbers(drawn["noise ceiling"]["x"]), 0.6, rtol=1e-6)


def numbers(part: Any) -> np.ndarray[Any, Any]:
    if not isinstance(part, dict):
        return np.asarray(part, dtype=float)
    flat = np.frombuffer(b64decode(part["bdata"]), dtype=np.dtype(part["dtype"]).newbyteorder("<"))
    return flat.reshape([int(side) for side in part["shape"].split(",")]) if "shape" in part else flat


def test_the_distribution_is_of_genes_and_leaves_the_undefined_out_in_words() -> None:
    view = board_view(make_board())
    boxes = figures.distribution_figure(view)
    r = view.r[:, 1]
    drawn = boxes["data"][1]
    assert [drawn[key][0] for key in ("lowerfence", "q1", "median", "q3", "upperfence")] == pytest.approx(
        np.percentile(r, [5, 25, 50, 75, 95])
    )
    assert boxes["layout"]["meta"]["names"] == [*(name for name in MODELS if name != "training mean"), "noise ceiling"]
    assert "not drawn: training mean." in words.caption("genes-spread", view)


def test_the_heat_map_holds_r_of_every_gene_by_model() -> None:
    view = board_view(make_board())
    (trace,) = figures.heat_map(view)["data"]
    np.testing.assert_allclose(numbers(trace["z"]), view.r.T, rtol=1e-6)
    assert trace["x"][1] == "GENE1, rank 2"
    assert html.unescape(trace["y"][2]) == EVIL_MODEL


def test_scatters_show_each_model_once_and_mark_what_cannot_be_predicted() -> None:
    view = board_view(make_board())
    traces = [trace for trace in figures.ceiling_figure(view)["data"] if trace["meta"].get("group") == "tiny"]
    good, bad = traces
    unpredictable = view.genes["unpredictable"].to_numpy()
    assert unpredictable.sum() == 4
    for trace, rows in ((good, ~unpredictable), (bad, unpredictable)):
        np.testing.assert_allclose(numbers(trace["x"]), view.genes["ceiling"][rows], rtol=1e-6)
        np.testing.assert_allclose(numbers(trace["y"]), view.r[rows, 1], rtol=1e-6)
    assert (good["marker"]["symbol"], bad["marker"]["symbol"]) == ("circle", "x")
    assert "(4 of 30)" in words.caption("ceiling", view)


def test_auxiliary_pairs_are_compared_gene_by_gene() -> None:
    view = board_view(make_board())
    assert [(pair.without, pair.added) for pair in view.pairs] == [(1, 0)]
    trace = figures.pairs_figure(view)["data"][1]
    np.testing.assert_allclose(numbers(trace["x"]), view.r[:, 1], rtol=1e-6)
    np.testing.assert_allclose(numbers(trace["y"]), view.r[:, 0], rtol=1e-6)
    gain = int((view.r[:, 0] > view.r[:, 1]).sum())
    assert f"tiny + aux: mean r 0.400 → 0.410 (+0.010); {gain} of 30 genes gain." in words.caption("auxiliary", view)


def test_a_large_board_is_cut_and_says_so() -> None:
    view = large_view()
    (trace,) = figures.heat_map(view)["data"]
    assert numbers(trace["z"]).shape == (figures.FIGURE_MODELS, figures.FIGURE_GENES)
    assert (trace["x"][0], trace["x"][-1]) == ("g0, rank 1", "g2999, rank 3000")
    assert "400 of 3,000 genes at evenly spaced ranks; per_gene.csv holds all" in words.caption("heat", view)
    assert "the first 40 of 60 models" in words.caption("heat", view)
    assert "the first 40 of 60 models" in words.caption("scores", view)
    assert len(figures.scores_figure(view)["layout"]["meta"]["names"]) == 40
    assert "2,000 of 3,000 genes" in words.caption("ceiling", view)
    assert "the first 12 of 60 models" in words.caption("ceiling", view)
    data = tables.genes_data(view)
    assert (len(data["rows"]), len(data["models"])) == (3000, 12)
    assert "the first 12 of 60 models; per_gene.csv holds all" in words.genes(view)


def test_the_table_of_models_shows_what_is_defined() -> None:
    board = make_board()
    rows = ElementTree.fromstring(tables.models_table(board_view(board).models)).iter("tr")
    _, heads, *lines = [["".join(cell.itertext()) for cell in row] for row in rows]
    found = pd.DataFrame(lines, columns=heads)
    assert found["model"].tolist() == list(MODELS)
    assert found["r"].tolist() == ["0.410", "0.400", "0.350", "0.300", "0.250", "–", "0.520"]
    assert found["rank"].tolist() == ["1", "2", "3", "4", "5", "6", "–"]
    assert found["interval"].tolist()[0] == "0.370 to 0.450"
    assert found["parameters"].tolist()[:5] == ["11,000,000", "10,000,000", "9", "8", "–"]
    assert "slope" not in found
    assert found["SSIM"].astype(float).tolist() == [0.3] * 7
    assert [tables.shown(value) for value in (0.5, 3, 1234.5, np.nan, None, "7–9", -0.0001, 1.0)] == [
        "0.500",
        "3",
        "1,234.5",
        "–",
        "–",
        "7–9",
        "0.000",
        "1.000",
    ]


@given(st.lists(st.floats(-1e3, 1e3) | st.just(float("nan")), min_size=1, max_size=50))
def test_quantized_values_are_off_by_at_most_half_a_level(values: list[float]) -> None:
    exact = np.array(values)
    low, high, levels = quantize(exact)
    back = np.where(levels == 255, np.nan, low + levels / 254 * (high - low))
    np.testing.assert_array_equal(np.isnan(back), np.isnan(exact))
    assert np.nanmax(np.abs(back - exact), initial=0) <= (high - low) / 508 * (1 + 1e-9) + 1e-9


@settings(max_examples=50)
@given(st.lists(st.text() | st.none() | st.dictionaries(st.text(), st.text(), max_size=2), max_size=4))
def test_json_in_a_script_is_the_same_value_and_cannot_end_it(value: Any) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert not set("<>&") & set(text)


@given(
    st.integers(1, 400),
    st.lists(st.integers(1, 5000), min_size=1, max_size=12),
    st.integers(2, 6),
    st.integers(1_000, 30_000_000),
)
def test_a_budget_is_kept_and_genes_are_taken_from_all_ranks(n: int, spots: list[int], arrays: int, budget: int) -> None:
    genes, sizes = [f"g{i}" for i in range(n)], {f"s{i}": size for i, size in enumerate(spots)}
    kept, shown = within_budget(genes, sizes, arrays, budget)
    used = sum(sizes[section] * arrays * 4 / 3 * len(kept) + 60_000 for section in shown)
    assert used <= budget
    assert kept == sorted(set(kept), key=genes.index)
    assert {kept[0], kept[-1]} <= {genes[0], genes[-1]}
    assert len(kept) >= min(n, 20)
    places = np.array([genes.index(gene) for gene in kept])
    assert len(places) < 3 or np.ptp(np.diff(places)) <= 1
    if sum(spots) * arrays * 4 / 3 * n + 60_000 * len(spots) <= budget:
        assert (len(kept), len(shown)) == (n, len(spots))


def test_a_map_lies_where_its_spots_lie_on_the_picture() -> None:
    """Under each spot the thumbnail is black, between spots it is white; also after cropping and resizing."""
    section = make_map("S1", "P", GENES[:2])
    payload = maps_payload([section], board_view(make_board()).genes)["sections"][0]
    picture = np.asarray(Image.open(io.BytesIO(b64decode(payload["picture"].partition(",")[2]))).convert("L")).astype(float)
    assert picture.shape == (payload["height"], payload["width"])
    assert max(picture.shape) == 512
    x, y = (np.frombuffer(b64decode(payload[axis]), dtype="<i2") / 8 for axis in "xy")
    assert picture[y.round().astype(int), x.round().astype(int)].max() < 60
    step = np.diff(x[:2])[0]
    between = picture[y.round().astype(int), (x[:, None] + [-step / 2, step / 2]).round().astype(int).T]
    assert between.min() > 200
    assert payload["umPerPx"] * step == pytest.approx(200, rel=0.01)  # spots lie 200 µm apart
    assert payload["spot"] == pytest.approx(12 / 20 * step, rel=0.01)


def test_spots_off_their_picture_are_refused() -> None:
    section = make_map("S1", "P", GENES[:2])
    with pytest.raises(DataError, match="S1 lie off its thumbnail of 400 x 300 px"):
        maps_payload([replace(section, x_px=section.x_px + 1000)], board_view(make_board()).genes)


def test_the_payload_holds_r_and_every_value_of_every_gene() -> None:
    section = make_map("S2", "P", GENES[:3], thumbnail=False)
    payload = maps_payload([section], board_view(make_board()).genes)
    assert payload["genes"] == GENES[:3]
    assert payload["ranks"] == [1, 2, 3]
    own = payload["sections"][0]
    assert own["picture"] is None
    part = own["predicted"][str(payload["models"].index("tiny"))]
    levels = np.frombuffer(b64decode(part["levels"]), dtype=np.uint8).reshape(3, own["n"])
    low, high = (np.array(part[end])[:, None] for end in ("low", "high"))
    np.testing.assert_allclose(low + levels / 254 * (high - low), section.predicted["tiny"].T, atol=0.02)
    wanted = [np.corrcoef(section.predicted["tiny"][:, i], section.measured[:, i])[0, 1] for i in range(3)]
    assert part["r"] == pytest.approx(wanted, abs=1e-4)


def write_predictions(folder: Path, predictions: anndata.AnnData, **changes: Any) -> Run:
    folder.mkdir(parents=True)
    predictions.write_h5ad(folder / "predictions.h5ad")
    return Run(folder, make_record(**changes))


def test_maps_are_read_from_the_lowest_seed_fold_by_fold(tmp_path: Path) -> None:
    whole = make_predictions(2, 2)
    runs = []
    for seed in (3, 1):
        for fold, patient in enumerate("AB"):
            own = whole[whole.obs["patient"] == patient].copy()
            own = own[:, 2 * fold :].copy()  # unlike panels
            own.X = own.X + seed
            fold_ref = {"index": fold, "test_patients": [patient], "validation": "patient"}
            runs.append(write_predictions(tmp_path / f"{seed}{fold}", own, seed=seed, fold=fold_ref))
    maps = load_maps({"tiny": runs}, None, models=["tiny"], genes=[f"GENE{i}" for i in (11, *range(11))])
    assert [(section.section, section.patient) for section in maps] == [("A1", "A"), ("A2", "A"), ("B1", "B"), ("B2", "B")]
    assert maps[0].genes[:2] == ("GENE11", "GENE0")  # in the order of ranks
    assert len(maps[0].genes) == 12
    assert len(maps[2].genes) == 10
    second = whole[whole.obs["section"] == "B2", list(maps[3].genes)]
    np.testing.assert_allclose(maps[3].measured, second.layers["measured"], rtol=1e-6)
    np.testing.assert_allclose(maps[3].predicted["tiny"], second.X + 1, rtol=1e-6)
    np.testing.assert_array_equal(maps[3].x_um, second.obs["x_um"])
    assert maps[3].thumbnail is None
    both = load_maps({"part": runs[:1], "tiny": runs}, None, models=["part", "tiny"])
    assert [list(section.predicted) for section in both] == [["part", "tiny"]] * 2 + [["tiny"]] * 2
    few = load_maps({"tiny": runs}, None, models=["tiny"], max_bytes=1)
    assert [section.genes for section in few] == [()] * 4


def test_thumbnails_come_from_the_cohort_the_runs_were_made_on(small_cohort: Path, tmp_path: Path) -> None:
    cohort = PreparedCohort.open(small_cohort)
    spots = cohort.spots("a1")
    rng = np.random.default_rng(0)
    predictions = anndata.AnnData(
        rng.normal(size=(len(spots), 4)).astype(np.float32),
        obs=spots[["x_um", "y_um"]].assign(section="a1", patient="a"),
        layers={"measured": rng.normal(size=(len(spots), 4)).astype(np.float32)},
    )
    reference = {"name": cohort.name, "hash": cohort.hash, "patients": list(cohort.patients)}
    run = write_predictions(tmp_path / "run", predictions, cohort=reference)
    (section,) = load_maps({"tiny": [run]}, cohort, models=["tiny"])
    assert section.thumbnail is not None
    # The card's squares are 40 px wide with a spot in the middle of each, so the picture has one color under each spot.
    scale = section.thumbnail.shape[1] / (8 * 40)
    np.testing.assert_allclose(section.x_px, spots["x_px"] * scale, rtol=0.02)
    np.testing.assert_allclose(section.y_px, spots["y_px"] * scale, rtol=0.02)
    other = replace_cohort(run)
    with pytest.raises(ProtocolError, match="maps would lie on other pictures"):
        load_maps({"tiny": [other]}, cohort, models=["tiny"])
    with pytest.raises(ProtocolError, match="c0"):
        load_maps({"tiny": [run], "other": [other]}, None, models=["tiny", "other"])


def replace_cohort(run: Run) -> Run:
    return Run(run.folder, make_record())


def test_maps_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    run = write_predictions(tmp_path / "good", make_predictions())
    with pytest.raises(DataError, match="no runs of the model 'tinny'; did you mean 'tiny'"):
        load_maps({"tiny": [run]}, None, models=["tinny"])
    with pytest.raises(DataError, match=r"lacks predictions\.h5ad"):
        load_maps({"tiny": [Run(tmp_path / "absent", run.record)]}, None, models=["tiny"])
    fewer = write_predictions(tmp_path / "fewer", make_predictions()[5:].copy())
    with pytest.raises(DataError, match="other and tiny were not tested on the same spots"):
        load_maps({"tiny": [run], "other": [fewer]}, None, models=["tiny", "other"])
    assert load_maps({"tiny": [run]}, None, models=[]) == []


def test_colors_have_contrast() -> None:
    """WCAG AA: text at least 4.5 to 1, marks at least 3 to 1, in both themes."""
    from stexpr.evaluate.page import build

    style = Path(build.__file__).with_name("page.css").read_text(encoding="utf-8")
    blocks = re.findall(r"^:root[^{]*\{(.*?)\}", style, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        color = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for paper in ("paper", "panel", "soft"):
            for ink in ("ink", "muted", "accent"):
                assert contrast(color[ink], color[paper]) >= 4.5, (ink, paper)
        assert contrast(color["warn"], color["warn-soft"]) >= 4.5
        for mark in ("network", "baseline", "reference", "patient", "ceiling", "warn"):
            assert contrast(color[mark], color["paper"]) >= 3, mark


def contrast(one: str, other: str) -> float:
    light = []
    for color in (one, other):
        channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    board: Leaderboard = make_board()
    with pytest.raises(DataError, match="cannot write into"):
        write_page(board, tmp_path / "file" / "page")
