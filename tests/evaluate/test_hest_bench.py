"""The HEST-Benchmark: the same numbers as its recipe written out with scikit-learn and SciPy, and no bad folder accepted."""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import timm
import torch
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from stexpr.config import AuxiliaryConfig, NetworkConfig
from stexpr.errors import ConfigError, DataError, GeneError, LeakageError, MetricError, ModelError
from stexpr.evaluate.hest.bench import hest_bench
from stexpr.evaluate.hest.encoder import open_encoder
from stexpr.evaluate.hest.folder import BenchRow, read_spots
from stexpr.evaluate.hest.probe import VARIANTS, ProbeSection, probe, training_genes
from stexpr.evaluate.hest.scores import HestBenchmark
from stexpr.models.backbones import create_backbone
from stexpr.models.export import save_model
from stexpr.models.objectives import make_objective
from stexpr.models.spot import build_spot_regressor
from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing, fit_panel

PX = 32
ALL_GENES = [f"G{i:02d}" for i in range(30)]
GIVEN = ["G03", "G00", "G07", "G25", "G11"]
"""G00 to G14 follow the color under the spot, the others are noise."""
TASKS = {"IDC": {"A": 40, "B": 36, "C": 45}, "PRAD": {"D": 30, "E": 38}}


def write_sample(task: Path, sample: str, seed: int, n: int) -> None:
    """Write colored patches, and counts of which half the genes follow the color; two more spots have no patch."""
    rng = np.random.default_rng(seed)
    color = rng.uniform(40, 230, (n, 1, 1, 3))
    images = (color + rng.normal(0, 12, (n, PX, PX, 3))).clip(0, 255).astype(np.uint8)
    level = np.full((n + 2, len(ALL_GENES)), 1.5)
    for gene in range(15):
        level[:n, gene] += (color[:, 0, 0, gene % 3] - 135) / 80
    counts = rng.poisson(np.exp(level)).astype(np.float32)
    names = [f"{sample}-{i}" for i in range(n + 2)]
    order = rng.permutation(n + 2)  # the file has its own order of spots
    spots = anndata.AnnData(
        sp.csr_matrix(counts[order]), obs=pd.DataFrame(index=[names[i] for i in order]), var=pd.DataFrame(index=ALL_GENES)
    )
    spots.write_h5ad(task / "adata" / f"{sample}.h5ad")
    with h5py.File(task / "patches" / f"{sample}.h5", "w") as file:
        file["img"] = images
        file["barcode"] = np.array([name.encode() for name in names[:n]])[:, None]
        file["coords"] = np.zeros((n, 2), dtype=np.int64)


def write_split(task: Path, name: str, samples: Sequence[str]) -> None:
    rows = [f"{sample},patches/{sample}.h5,adata/{sample}.h5ad" for sample in samples]
    (task / "splits" / name).write_text("\n".join(["sample_id,patches_path,expr_path", *rows]) + "\n")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of two tasks with three and two samples, each tested once; read it, do not change it."""
    folder = tmp_path_factory.mktemp("bench")
    for number, (name, samples) in enumerate(TASKS.items()):
        task = folder / name
        for below in ("splits", "adata", "patches"):
            (task / below).mkdir(parents=True)
        (task / "var_50genes.json").write_text(json.dumps({"genes": GIVEN}))
        for k, (sample, n) in enumerate(samples.items()):
            write_sample(task, sample, 10 * number + k, n)
            write_split(task, f"test_{k}.csv", [sample])
            write_split(task, f"train_{k}.csv", [other for other in samples if other != sample])
    # IDC's first fold tests two samples, so that pooled and within-section r differ
    write_split(folder / "IDC", "test_0.csv", ["A", "B"])
    write_split(folder / "IDC", "train_0.csv", ["C"])
    return folder


@pytest.fixture
def bench(planted: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(planted, tmp_path / "bench"))


def save_timm(name: str, folder: Path) -> Path:
    """Save a network with random weights and colors and size of its own, in timm's format."""
    torch.manual_seed(3)
    overlay = {"mean": (0.4, 0.5, 0.6), "std": (0.3, 0.2, 0.25), "input_size": (3, PX, PX)}
    network = timm.create_model(name, num_classes=0, pretrained_cfg_overlay=overlay)
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    return folder


def make_export(folder: Path, *, window_px: int = PX, mpp: float = 3.5, stain: str = "none", backbone: str = "tiny") -> Path:
    """Save a small untrained spot regressor as stexpr exports one; 112 um of tissue are 32 px at 3.5 um/px."""
    counts = np.random.default_rng(0).poisson(3, (20, 2)).astype(np.float32)
    transform = ExpressionTransform()
    objective = make_objective(
        "mse", counts=counts, library=np.full(20, 100, np.float32), transform=transform, standardize=True
    )
    config = NetworkConfig(backbone=backbone, auxiliary=AuxiliaryConfig(weight=0))
    model = build_spot_regressor(config, window_px=window_px, main_objective=objective, auxiliary_objective=None, seed=5)
    save_model(
        folder,
        model,
        panel=GenePanel(("X", "Y"), (), "top_mean", "training", 0.1, detection={"X": 1.0, "Y": 1.0}),
        transform=transform,
        preprocessing=Preprocessing(mpp, window_px, model.backbone.input_px, stain, model.backbone.mean, model.backbone.sd),
        provenance={"label": "small", "cohort": "mob", "training_patients": ["mouse 1", "mouse 2"]},
    )
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model, whose backbone is fast."""
    return make_export(tmp_path_factory.mktemp("encoders") / "small")


@pytest.fixture(scope="module")
def scored(planted: Path, small: Path) -> HestBenchmark:
    return hest_bench(planted, small, device="cpu")


# -- the recipe, written out ---------------------------------------------------------------------------------------------


@cache
def timm_features(folder: Path, sample: Path) -> np.ndarray:
    network = timm.create_model(f"local-dir:{folder}", num_classes=0, pretrained=True).eval()
    with h5py.File(sample) as file:
        images = file["img"][:].astype(np.float32) / 255
    images = (images - np.float32([0.4, 0.5, 0.6])) / np.float32([0.3, 0.2, 0.25])
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return network.to(memory_format=torch.channels_last)(tensor).numpy()


def recipe(
    train: list[tuple[np.ndarray, pd.DataFrame]],
    test: list[tuple[np.ndarray, pd.DataFrame]],
    genes: Sequence[str],
    *,
    intercept: bool = False,
    pooled: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return r and RMSE per gene, from features and counts of each sample."""
    train_x, train_y = (
        np.concatenate([x for x, _ in train]),
        np.log1p(pd.concat([y for _, y in train])[list(genes)].to_numpy(float)),
    )
    test_x, test_y = (
        np.concatenate([x for x, _ in test]),
        np.log1p(pd.concat([y for _, y in test])[list(genes)].to_numpy(float)),
    )
    scaler, pca = StandardScaler(), PCA(min(256, train_x.shape[1], len(train_x) - 1), random_state=1)
    inputs = [torch.Tensor(pca.fit_transform(scaler.fit_transform(train_x)))]
    inputs.append(torch.Tensor(pca.transform(scaler.transform(test_x))))
    alpha = 100 / (inputs[0].shape[1] * len(genes))
    ridge = Ridge(solver="lsqr", alpha=alpha, fit_intercept=intercept, max_iter=1000, random_state=1)
    predicted = ridge.fit(inputs[0], train_y).predict(inputs[1])
    groups = [np.arange(len(test_y))] if pooled else np.split(np.arange(len(test_y)), np.cumsum([len(x) for x, _ in test])[:-1])
    r = [[stats.pearsonr(test_y[g, j], predicted[g, j]).statistic for j in range(len(genes))] for g in groups]
    rmse = [[np.sqrt(np.mean((test_y[g, j] - predicted[g, j]) ** 2)) for j in range(len(genes))] for g in groups]
    return np.mean(r, axis=0), np.mean(rmse, axis=0)


def reference(task: Path, samples: Sequence[str], features: Callable[[Path], np.ndarray]) -> list[Any]:
    found = []
    for sample in samples:
        spots = anndata.read_h5ad(task / "adata" / f"{sample}.h5ad")
        with h5py.File(task / "patches" / f"{sample}.h5") as file:
            barcodes = file["barcode"][:].ravel().astype(str)
        found.append((features(task / "patches" / f"{sample}.h5"), spots[barcodes].to_df()))
    return found


# -- agreement -----------------------------------------------------------------------------------------------------------


def test_every_number_is_that_of_the_recipe(planted, tmp_path):
    resnet = save_timm("resnet18", tmp_path / "resnet")
    scored = hest_bench(planted, str(resnet), device="cpu")
    means = dict.fromkeys(VARIANTS, ())
    for task in scored.tasks:
        own = dict.fromkeys(VARIANTS, ())
        for fold in task.folds:
            sides = [
                reference(planted / task.name, samples, lambda path: timm_features(resnet, path))
                for samples in (fold.train, fold.test)
            ]
            chosen = fold.variants["training_genes"].genes
            expected = {
                "hest": recipe(*sides, GIVEN),
                "intercept": recipe(*sides, GIVEN, intercept=True),
                "training_genes": recipe(*sides, chosen),
                "within_section": recipe(*sides, GIVEN, pooled=False),
            }
            for variant, (r, rmse) in expected.items():
                score = fold.variants[variant]
                assert score.genes == (chosen if variant == "training_genes" else tuple(GIVEN))
                np.testing.assert_allclose(score.r, r, atol=1e-6)
                np.testing.assert_allclose(score.rmse, rmse, atol=1e-6)
                own[variant] += (r.mean(),)
        table = scored.table().loc[task.name]
        for variant, values in own.items():
            assert table[variant] == pytest.approx(np.mean(values), abs=1e-6)
            means[variant] += (np.mean(values),)
        assert table["hest_sd"] == pytest.approx(np.std(own["hest"]), abs=1e-6)
    for variant, values in means.items():
        assert scored.table().loc["mean", variant] == pytest.approx(np.mean(values), abs=1e-6)


def make_sections(
    n_sections: int = 3, *, n: int = 200, d: int = 300, genes: Sequence[str] = ALL_GENES, shift: float = 0.0, seed: int = 0
) -> list[ProbeSection]:
    """Samples whose features and first 15 genes follow four factors; `shift` moves one feature and all genes by sample."""
    rng = np.random.default_rng(seed)
    loading, effect = rng.normal(0, 1, (4, d)), rng.normal(0, 0.4, (4, len(genes)))
    effect[:, 15:] = 0
    sections = []
    for i in range(n_sections):
        factors = rng.normal(0, 1, (n, 4))
        features = factors @ loading + rng.normal(0, 3, (n, d))
        features[:, 0] += 60 * shift * i
        counts = rng.poisson(np.exp(1 + factors @ effect + shift * i))
        sections.append(
            ProbeSection(f"S{i}", features.astype(np.float32), tuple(genes), sp.csr_matrix(counts.astype(np.float32)))
        )
    return sections


def plain(sections: Sequence[ProbeSection]) -> list[Any]:
    return [(s.features, pd.DataFrame(s.counts.toarray(), columns=list(s.genes))) for s in sections]


def test_with_enough_spots_there_are_256_components_and_the_recipes_numbers():
    sections = make_sections()
    variants, n_components = probe(sections[:2], sections[2:], GIVEN)
    assert n_components == 256
    r, rmse = recipe(plain(sections[:2]), plain(sections[2:]), GIVEN)
    np.testing.assert_allclose(variants["hest"].r, r, atol=1e-6)
    np.testing.assert_allclose(variants["hest"].rmse, rmse, atol=1e-6)


def test_the_solver_is_near_the_exact_solution():
    """In float64, by the normal equations: what is left is the tolerance HEST runs its solver at."""
    sections = make_sections(d=40)
    (variants, n_components), (train, test) = probe(sections[:2], sections[2:], GIVEN), (sections[:2], sections[2:])
    x, new = (np.concatenate([s.features for s in side]).astype(float) for side in (train, test))
    mean, sd = x.mean(0), x.std(0)
    x, new = (x - mean) / sd, (new - mean) / sd
    y, truth = (np.log1p(np.concatenate([plain([s])[0][1][GIVEN] for s in side])) for side in (train, test))
    weights = np.linalg.solve(x.T @ x + 100 / (40 * len(GIVEN)) * np.eye(40), x.T @ y)
    exact = [np.corrcoef(new @ weights[:, j], truth[:, j])[0, 1] for j in range(len(GIVEN))]
    assert n_components == 40
    np.testing.assert_allclose(variants["hest"].r, exact, atol=2e-3)


# -- what the variants say -----------------------------------------------------------------------------------------------


def test_planted_genes_are_found_and_noise_is_not(scored):
    for task in scored.tasks:
        r = np.mean([fold.variants["hest"].r for fold in task.folds], axis=0)
        assert (r[[GIVEN.index(gene) for gene in ("G00", "G03", "G07", "G11")]] > 0.4).all()
        assert abs(r[GIVEN.index("G25")]) < 0.25


def test_an_intercept_changes_the_error_and_hardly_r(scored):
    r, rmse = scored.table(), scored.table("rmse")
    assert (r["intercept"] - r["hest"]).abs().max() < 0.01
    assert (rmse["intercept"] < rmse["hest"] - 0.5).all()


def test_a_shift_between_samples_pays_in_the_pooled_r_only():
    train, test = make_sections(4, shift=0.5)[:2], make_sections(4, shift=0.5)[2:]
    variants, _ = probe(train, test, ALL_GENES[15:20])  # noise, but for the shift
    assert variants["hest"].mean_r > 0.2
    assert abs(variants["within_section"].mean_r) < 0.1
    assert variants["within_section"].n_values == 2 * 5


def test_training_genes_are_those_of_the_training_samples():
    train, test = make_sections(3)[:2], make_sections(3)[2:]
    chosen = training_genes(train, test, 8)
    counts = sp.vstack([section.counts for section in train], format="csr")
    assert chosen == fit_panel(counts, ALL_GENES, rule="highly_variable", n_main=8, min_detection=0.1).main
    assert len(set(chosen) & set(ALL_GENES[:15])) >= 6
    other = ProbeSection("T", test[0].features, test[0].genes, sp.csr_matrix(test[0].counts[:, ::-1] * 7))
    assert training_genes(train, [other], 8) == chosen  # no test count is read
    moved = [ProbeSection(s.sample, s.features, s.genes[::-1], sp.csr_matrix(s.counts[:, ::-1])) for s in train]
    assert training_genes(moved, test, 8) == chosen
    assert training_genes(train[::-1], test, 8) == chosen


def test_training_genes_are_named_by_every_sample_and_are_genes():
    names = [*ALL_GENES[:2], "BLANK_0002", "NegControlProbe_00031", *ALL_GENES[4:]]
    train, test = make_sections(3, genes=names)[:2], make_sections(3, genes=names)[2:]
    lacking = ProbeSection("T", test[0].features, test[0].genes[:-3], sp.csr_matrix(test[0].counts[:, :-3]))
    chosen = training_genes(train, [lacking], 100)
    assert sorted(chosen) == sorted({*ALL_GENES[:-3]} - {"G02", "G03"})


def test_without_a_gene_that_is_seen_there_is_nothing_to_choose():
    empty = [
        ProbeSection(s.sample, s.features, s.genes, sp.csr_matrix(s.counts.shape, dtype=np.float32)) for s in make_sections()
    ]
    with pytest.raises(GeneError, match="none of the 30 genes"):
        training_genes(empty, empty, 5)


def test_an_undefined_r_is_counted_and_never_0(bench, small):
    path = bench / "IDC" / "adata" / "C.h5ad"
    spots = anndata.read_h5ad(path)
    counts = spots.X.tolil()
    counts[:, ALL_GENES.index("G07")] = 4
    spots.X = counts.tocsr()
    spots.write_h5ad(path)
    result = hest_bench(bench, small, tasks=["IDC"], device="cpu")
    constant = result.tasks[0].folds[2].variants["hest"]  # C is tested alone
    assert np.isnan(constant.r).tolist() == [gene == "G07" for gene in GIVEN]
    assert (constant.n_undefined, constant.n_values) == (1, 5)
    assert np.isnan(result.table()["hest"]).all()  # HEST's plain mean
    assert result.table()["n_undefined"].tolist() == [2, 2]  # in fold 0 nothing was there to learn
    assert result.tasks[0].folds[2].mean("intercept") == pytest.approx(
        np.nanmean(result.tasks[0].folds[2].variants["intercept"].r)
    )
    note = next(note for note in result.notes if "HEST: 2 of 15 r are undefined" in note)
    expected = np.mean([np.nanmean(fold.variants["hest"].r) for fold in result.tasks[0].folds])
    assert f"r = {expected:.4f}" in note
    values = result.results()["tasks"][0]["folds"][2]["variants"]["hest"]
    assert values["genes"]["G07"]["r"] is None
    assert values["r"] is None
    assert "| IDC | – |" in result.markdown()


def test_a_section_of_one_spot_has_no_r_of_its_own():
    first, second, third = make_sections(3, d=20)
    single = ProbeSection("one", third.features[:1], third.genes, sp.csr_matrix(third.counts[:1]))
    variants, _ = probe([first], [second, single], GIVEN)
    alone, _ = probe([first], [second], GIVEN)
    np.testing.assert_array_equal(variants["within_section"].r, alone["within_section"].r)
    assert (variants["within_section"].n_undefined, variants["within_section"].n_values) == (5, 10)
    with pytest.raises(MetricError, match="at least 2"):
        probe([first], [single], GIVEN)
    with pytest.raises(DataError, match="1 training spots"):
        probe([single], [first], GIVEN)


# -- one run -------------------------------------------------------------------------------------------------------------


def test_one_task_alone_has_the_same_numbers(planted, small, scored):
    alone = hest_bench(planted / "PRAD", small, device="cpu")
    assert alone.results()["tasks"] == [task for task in scored.results()["tasks"] if task["task"] == "PRAD"]
    assert alone.table().index.tolist() == ["PRAD", "mean"]


def test_tasks_come_in_the_order_asked_for(planted, small, scored):
    assert scored.table().index.tolist() == ["IDC", "PRAD", "mean"]
    result = hest_bench(planted, small, tasks=["PRAD", "IDC"], device="cpu")
    assert result.table().index.tolist() == ["PRAD", "IDC", "mean"]
    assert result.table()["n_folds"].tolist() == [2, 3, 5]


def test_each_sample_is_embedded_once(planted, small):
    seen = []

    def count(module: Any, inputs: Any, output: Any) -> None:
        if type(module).__name__ == "Backbone":
            seen.append(len(output))

    shown = []

    def progress(items: Any, label: str, total: int | None = None) -> Any:
        shown.append((label, total))
        return items

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        hest_bench(planted, small, device="cpu", batch_size=16, progress=progress)
    finally:
        hook.remove()
    assert sum(seen) == sum(n for samples in TASKS.values() for n in samples.values())
    assert max(seen) == 16
    assert shown == [("embedding IDC", 3), ("embedding PRAD", 2)]


def test_neither_the_order_of_spots_in_a_file_nor_a_repetition_matters(bench, small, scored):
    for path in bench.glob("*/adata/*.h5ad"):
        spots = anndata.read_h5ad(path)
        spots[::-1].copy().write_h5ad(path)
    assert hest_bench(bench, small, device="cpu").results() == scored.results()


def test_what_is_left_out_is_said(bench, small):
    (bench / "fm_v1").mkdir()
    (bench / ".cache").mkdir()
    (bench / "PRAD" / "splits" / "all.csv").write_text("sample_id\n")
    path = bench / "PRAD" / "adata" / "D.h5ad"
    spots = anndata.read_h5ad(path)
    spots.X = spots.X * 0.3
    spots.write_h5ad(path)
    notes = hest_bench(bench, small, tasks=["PRAD"], device="cpu").notes
    assert "folders without splits, left out: fm_v1" in notes
    assert "splits/ of task PRAD also holds all.csv, left out" in notes
    assert "task PRAD: 2 of 32 spots of sample D have no patch and are left out, as in HEST" in notes
    assert any("sample D holds counts that are no whole numbers" in note for note in notes)
    assert any("fold 0: 37 components, as 38 training spots" in note for note in notes)


def test_results_are_written_whole(scored, tmp_path):
    path = scored.write(tmp_path / "out")
    values = json.loads(path.read_text())
    assert sorted(p.name for p in path.parent.iterdir()) == ["hest_bench.csv", "hest_bench.json", "hest_bench.md"]
    assert values == scored.results()
    assert values["encoder"]["name"] == "small"
    assert {"stexpr", "torch", "timm", "scikit-learn", "scanpy"} <= values["versions"].keys()
    fold = values["tasks"][0]["folds"][1]
    assert (fold["train"], fold["test"], fold["n_train_spots"], fold["n_test_spots"]) == (["A", "C"], ["B"], 85, 36)
    genes = fold["variants"]["hest"]["genes"]
    assert list(genes) == GIVEN
    assert np.mean([entry["r"] for entry in genes.values()]) == pytest.approx(fold["variants"]["hest"]["r"])
    table = pd.read_csv(path.parent / "hest_bench.csv", index_col="task")
    pd.testing.assert_frame_equal(table, scored.table(), check_exact=False)
    text = (path.parent / "hest_bench.md").read_text()
    row = scored.table().loc["IDC"]
    assert f"| IDC | {row['hest']:.4f} ({row['hest_sd']:.4f}) | {row['intercept']:.4f} |" in text
    assert f"| **mean** | {scored.table().loc['mean', 'hest']:.4f} |" in text
    assert "/" not in json.dumps(values["encoder"])  # no path


def test_the_task_hash_names_genes_and_splits(bench, small, scored):
    def digest() -> str:
        return hest_bench(bench, small, tasks=["PRAD"], device="cpu").tasks[0].sha256

    assert digest() == scored.tasks[1].sha256
    (bench / "PRAD" / "var_50genes.json").write_text(json.dumps({"genes": GIVEN[::-1]}))
    assert digest() != scored.tasks[1].sha256


# -- encoders ------------------------------------------------------------------------------------------------------------


def test_an_exported_model_sees_the_field_it_was_trained_on(planted, tmp_path):
    sample = planted / "IDC" / "patches" / "A.h5"
    frozen = open_encoder(make_export(tmp_path / "model", window_px=16), device="cpu")  # 56 um: the inner half
    with h5py.File(sample) as file:
        inner = torch.from_numpy(file["img"][:, 8:24, 8:24]).permute(0, 3, 1, 2)
    backbone = create_backbone("tiny", window_px=16, seed=5).eval()
    with torch.inference_mode():
        expected = backbone(backbone.preprocess(inner)).numpy()
    np.testing.assert_allclose(frozen.embed(sample, batch_size=9), expected, atol=1e-5)
    assert (frozen.identity["kind"], frozen.identity["name"]) == ("stexpr", "small")
    assert frozen.identity["provenance"]["training_patients"] == ["mouse 1", "mouse 2"]


def test_an_exported_model_is_scored_as_its_features_are(planted, tmp_path):
    folder = make_export(tmp_path / "model")
    result = hest_bench(planted, str(folder), tasks=["IDC"], device="cpu")
    frozen = open_encoder(folder, device="cpu")
    fold = result.tasks[0].folds[0]
    sides = [
        reference(planted / "IDC", samples, lambda path: frozen.embed(path, batch_size=128))
        for samples in (fold.train, fold.test)
    ]
    np.testing.assert_allclose(fold.variants["hest"].r, recipe(*sides, GIVEN)[0], atol=1e-6)
    assert any("trained on 2 patients of cohort mob" in note for note in result.notes)


def test_a_larger_field_and_a_stain_are_said(planted, tmp_path):
    frozen = open_encoder(make_export(tmp_path / "wide", window_px=64, stain="macenko"), device="cpu")
    assert any(
        "trained on 224 µm of tissue, a patch holds 112" in note and "at 1.750 instead of 3.500" in note
        for note in frozen.notes
    )
    assert any("macenko-normalized" in note for note in frozen.notes)
    assert frozen.embed(planted / "IDC" / "patches" / "A.h5", batch_size=64).shape == (40, 192)


def test_a_timm_name_gets_its_own_input_size(planted):
    frozen = open_encoder("test_resnet", pretrained=False, device="cpu")
    assert (frozen.identity["window_px"], frozen.identity["input_px"]) == (160, 160)
    assert any("resized from 224 to 160 px" in note for note in frozen.notes)
    sample = planted / "PRAD" / "patches" / "D.h5"
    with h5py.File(sample) as file:
        images = torch.from_numpy(file["img"][:]).permute(0, 3, 1, 2).float()
    images = torch.nn.functional.interpolate(images, (160, 160), mode="bilinear", antialias=True).round() / 255
    network = create_backbone("test_resnet", window_px=160).eval()
    with torch.inference_mode():
        expected = network((images - network.mean_rgb[:, None, None]) / network.sd_rgb[:, None, None]).numpy()
    np.testing.assert_allclose(frozen.embed(sample, batch_size=30), expected, atol=1e-5)


def test_weights_are_identified(small, tmp_path):
    saved = save_timm("test_resnet", tmp_path / "timm")
    first, again = (open_encoder("tiny", pretrained=False, device="cpu") for _ in range(2))
    assert first.identity == again.identity
    assert first.notes == ("the encoder's weights are random (pretrained=False)",)
    assert open_encoder(small, device="cpu").identity["weights_sha256"] != first.identity["weights_sha256"]
    named = open_encoder(f"local-dir:{saved}", device="cpu").identity
    assert named == open_encoder(saved, device="cpu").identity
    assert (named["name"], named["input_px"], named["pretrained"]) == ("timm", PX, True)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [("resnet81", "no backbone 'resnet81'"), (Path("absent"), "absent is no exported model"), ("tiny", "pretrained")],
    ids=str,
)
def test_an_encoder_that_cannot_be_had_is_said(planted, encoder, message):
    with pytest.raises(ModelError, match=message):
        hest_bench(planted, encoder, device="cpu")


def test_weights_of_a_file_are_taken_for_the_architecture_named(planted, tmp_path):
    folder = save_timm("test_resnet", tmp_path / "timm")
    (folder / "model.safetensors").rename(tmp_path / "mine.safetensors")
    given = open_encoder("test_resnet", weights=tmp_path / "mine.safetensors", pretrained=False, device="cpu")
    drawn = open_encoder("test_resnet", pretrained=False, device="cpu")
    assert given.identity["pretrained"]
    assert given.identity["weights_sha256"] != drawn.identity["weights_sha256"]
    assert not any("random" in note for note in given.notes)
    with pytest.raises(ModelError, match="has weights of its own"):
        open_encoder(folder, weights=tmp_path / "mine.safetensors", device="cpu")


def test_a_published_encoder_without_its_weights_says_its_terms(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"CC-BY-NC-ND-4\.0, access on request .*--download on the command line"):
        hest_bench(planted, "hf-hub:MahmoodLab/UNI2-h", device="cpu")


def test_features_that_are_not_finite_are_refused(planted):
    frozen = open_encoder("tiny", pretrained=False, device="cpu")
    with torch.no_grad():
        next(frozen.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite for 40 patches"):
        frozen.embed(planted / "IDC" / "patches" / "A.h5", batch_size=32)


# -- bad folders ---------------------------------------------------------------------------------------------------------


def change_h5(task: Path, name: str, values: np.ndarray | None) -> None:
    with h5py.File(task / "patches" / "A.h5", "r+") as file:
        del file[name]
        if values is not None:
            file[name] = values


def change_spots(task: Path, change: Callable[[anndata.AnnData], anndata.AnnData | None]) -> None:
    spots = anndata.read_h5ad(task / "adata" / "A.h5ad")
    changed = change(spots)
    (spots if changed is None else changed).write_h5ad(task / "adata" / "A.h5ad")


def negative(spots: anndata.AnnData) -> None:
    spots.X.data[3] = -1


def infinite(spots: anndata.AnnData) -> None:
    spots.X.data[3] = np.inf


def repeated_spot(spots: anndata.AnnData) -> None:
    spots.obs_names = ["A-0", "A-0", *spots.obs_names[2:]]


def repeated_gene(spots: anndata.AnnData) -> None:
    spots.var_names = ["G00", "G00", *spots.var_names[2:]]


def named(count: int, sample: str = "A") -> np.ndarray:
    return np.array([f"{sample}-{i}".encode() for i in range(count)])


BAD: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no splits": (lambda t: shutil.rmtree(t / "splits"), DataError, "holds no task"),
    "an empty splits folder": (
        lambda t: [p.unlink() for p in (t / "splits").iterdir()],
        DataError,
        "holds train none and test none",
    ),
    "half a fold": (lambda t: (t / "splits/test_1.csv").unlink(), DataError, r"train \[0, 1, 2\] and test \[0, 2\]"),
    "no first fold": (lambda t: [(t / f"splits/{s}_0.csv").unlink() for s in ("train", "test")], DataError, r"train \[1, 2\]"),
    "no columns": (
        lambda t: (t / "splits/test_1.csv").write_text("sample_id,path\nB,x\n"),
        DataError,
        "lacks the columns patches_path, expr_path",
    ),
    "an empty split": (lambda t: write_split(t, "test_1.csv", []), DataError, "names no sample"),
    "an empty file": (lambda t: (t / "splits/test_1.csv").write_text(""), DataError, "cannot read"),
    "a nameless sample": (
        lambda t: (t / "splits/test_1.csv").write_text("sample_id,patches_path,expr_path\n,patches/B.h5,adata/B.h5ad\n"),
        DataError,
        "without sample_id",
    ),
    "a sample twice": (lambda t: write_split(t, "test_1.csv", ["B", "B"]), DataError, "more than once: B"),
    "a sample on both sides": (
        lambda t: write_split(t, "train_1.csv", ["A", "B", "C"]),
        LeakageError,
        "fold 1 of task IDC has 1 samples in .*: B",
    ),
    "a file on both sides": (
        lambda t: (t / "splits/test_1.csv").write_text("sample_id,patches_path,expr_path\nZ,patches/A.h5,adata/B.h5ad\n"),
        LeakageError,
        r"under different sample_ids: A\.h5",
    ),
    "a path that leaves": (
        lambda t: (t / "splits/test_1.csv").write_text(
            "sample_id,patches_path,expr_path\nB,patches/../../PRAD/patches/D.h5,x\n"
        ),
        DataError,
        "must stay inside",
    ),
    "an absolute path": (
        lambda t: (t / "splits/test_1.csv").write_text(f"sample_id,patches_path,expr_path\nB,{t}/patches/B.h5,adata/B.h5ad\n"),
        DataError,
        "must stay inside",
    ),
    "no path": (
        lambda t: (t / "splits/test_1.csv").write_text("sample_id,patches_path,expr_path\nB,patches/B.h5,\n"),
        DataError,
        "path ''",
    ),
    "no patches": (lambda t: (t / "patches/A.h5").unlink(), DataError, "names patches/A.h5, which is not in"),
    "no expression": (lambda t: (t / "adata/A.h5ad").unlink(), DataError, "names adata/A.h5ad, which is not in"),
    "no genes": (lambda t: (t / "var_50genes.json").unlink(), GeneError, "cannot read .*var_50genes"),
    "genes of another shape": (lambda t: (t / "var_50genes.json").write_text('["G00"]'), GeneError, "must hold"),
    "an empty list of genes": (lambda t: (t / "var_50genes.json").write_text('{"genes": []}'), GeneError, "must hold"),
    "genes that are not JSON": (lambda t: (t / "var_50genes.json").write_text("{"), GeneError, "is not JSON"),
    "a gene listed twice": (
        lambda t: (t / "var_50genes.json").write_text('{"genes": ["G00", "G01", "G00"]}'),
        GeneError,
        "1 genes more than once",
    ),
    "a gene that is missing": (
        lambda t: (t / "var_50genes.json").write_text('{"genes": ["G00", "ZZ"]}'),
        GeneError,
        "lacks 1 of the 2 genes .*: ZZ",
    ),
    "patches that are no HDF5": (lambda t: (t / "patches/A.h5").write_bytes(b"no"), DataError, "as HDF5"),
    "patches without images": (lambda t: change_h5(t, "img", None), DataError, "holds no img"),
    "patches of another type": (lambda t: change_h5(t, "img", np.zeros((40, 8, 8, 3))), DataError, "img float64"),
    "patches that are not square": (
        lambda t: change_h5(t, "img", np.zeros((40, 8, 9, 3), np.uint8)),
        DataError,
        "must be square",
    ),
    "no barcodes": (lambda t: change_h5(t, "barcode", None), DataError, "40 patches and 0 barcodes"),
    "too few barcodes": (lambda t: change_h5(t, "barcode", named(39)), DataError, "40 patches and 39 barcodes"),
    "a barcode twice": (lambda t: change_h5(t, "barcode", np.r_[named(39), named(1)]), DataError, "1 barcodes more than once"),
    "barcodes of another sample": (
        lambda t: change_h5(t, "barcode", named(40, "B")),
        DataError,
        "40 of the 40 patches of sample A .*: B-0, B-1",
    ),
    "expression that is no AnnData": (lambda t: (t / "adata/A.h5ad").write_bytes(b"no"), DataError, "as AnnData"),
    "spots without a patch's": (
        lambda t: change_spots(t, lambda s: s[~s.obs_names.isin(["A-3", "A-7"])].copy()),
        DataError,
        "2 of the 40 patches .*: A-3, A-7",
    ),
    "no counts": (lambda t: change_spots(t, lambda s: anndata.AnnData(obs=s.obs, var=s.var)), DataError, "A.h5ad has no X"),
    "negative counts": (lambda t: change_spots(t, negative), DataError, "negative or not finite"),
    "infinite counts": (lambda t: change_spots(t, infinite), DataError, "negative or not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_is_wrong_is_refused_before_anything_is_embedded(bench, case):
    spoil, error, message = BAD[case]
    spoil(bench / "IDC")
    with pytest.raises(error, match=message) as caught:
        hest_bench(bench / "IDC", "tiny", pretrained=False, device="cpu")
    assert type(caught.value) is error


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [(repeated_spot, DataError, "1 barcode names"), (repeated_gene, GeneError, "1 gene names .* 'G00'")],
)
def test_names_that_stand_twice_are_refused(bench, change, error, message):
    change_spots(bench / "IDC", change)
    with pytest.raises(error, match=message):
        hest_bench(bench / "IDC", "tiny", pretrained=False, device="cpu")


def test_a_link_inside_the_folder_is_followed(bench, tmp_path, scored, small):
    """As in the cache of huggingface_hub, where every file is a link to a blob elsewhere."""
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate([*bench.glob("*/patches/*"), *bench.glob("*/adata/*")]):
        blob = tmp_path / "blobs" / str(number)
        path.rename(blob)
        path.symlink_to(blob)
    assert hest_bench(bench, small, device="cpu").results() == scored.results()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["IDD"], "no task 'IDD' in .*did you mean 'IDC'"),
        (["IDC", "IDC"], "named once"),
        ([], "got none"),
        (["fm_v1"], "no folder splits/"),
    ],
)
def test_tasks_that_are_not_there_are_refused(bench, tasks, message):
    (bench / "fm_v1").mkdir()
    with pytest.raises(ConfigError, match=message):
        hest_bench(bench, "tiny", tasks=tasks, pretrained=False, device="cpu")


def test_no_folder_and_no_batch_are_refused(planted, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        hest_bench(tmp_path / "absent", "tiny", pretrained=False)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        hest_bench(planted, "tiny", pretrained=False, batch_size=0)


def test_dense_counts_and_plain_barcodes_are_read_alike(bench):
    row = BenchRow("A", bench / "IDC/patches/A.h5", bench / "IDC/adata/A.h5ad")
    before = read_spots(row, GIVEN)

    def densify(spots: anndata.AnnData) -> None:
        spots.X = spots.X.toarray()

    change_spots(bench / "IDC", densify)
    with h5py.File(row.patches, "r+") as file:
        file["barcodes"] = [name.decode() for name in named(40)]
        del file["barcode"]
    after = read_spots(row, GIVEN)
    np.testing.assert_array_equal(after.counts.toarray(), before.counts.toarray())
    assert before.counts.shape == (40, 30)
