"""An encoder whose last block learns with a head: from slides to bags with pixels, to a head, to bags by the tuned encoder."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from slide_cohorts import slide_study
from slides import slide_pixels, write_slide, write_slide_model
from stexpr.config.slides import SlideTables
from stexpr.data.bags import read_bag
from stexpr.engines import EngineOptions, make_engine
from stexpr.errors import ModelError
from stexpr.evaluate.records import read_any_record
from stexpr.inference.bags import EmbedSettings
from stexpr.models.backbones import create_backbone
from stexpr.models.bag.last_blocks import last_blocks
from stexpr.models.bag.saved import load_head
from stexpr.models.export import load_model
from stexpr.train.checkpoint import StopFlag
from stexpr.train.slides.deploy import deploy
from stexpr.train.slides.embed import embed_slides
from stexpr.train.slides.embed_job import EncoderSource
from stexpr.train.slides.study import SlideStudy

PATIENTS = 12


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides, tables and bags with the pixels of their patches."""
    folder = tmp_path_factory.mktemp("finetuned")
    names = [f"P{i:02d}" for i in range(PATIENTS)]
    (folder / "slides").mkdir()
    for i, name in enumerate(names):
        write_slide(folder / "slides" / f"{name}.tif", slide_pixels(240, 300, seed=i))
    rng = np.random.default_rng(0)
    clinical = {"PATIENT": names, "KI67": rng.random(PATIENTS).round(3), "OS": 1, "OS.time": rng.integers(10, 90, PATIENTS)}
    frame = pd.DataFrame(clinical).assign(OS=[int(i % 4 > 0) for i in range(PATIENTS)], SITE="S")
    frame.to_csv(folder / "clinical.csv", index=False)
    pd.DataFrame({"PATIENT": names, "FILENAME": names}).to_csv(folder / "slides.csv", index=False)
    write_slide_model(folder / "model")
    embed(folder, folder / "model", folder / "bags")
    return folder


def embed(folder: Path, model: Path, bags: Path) -> None:
    engine = make_engine("local", EngineOptions(workers=1), bags / "logs")
    settings = EmbedSettings(patches=True, symmetries=False)
    embed_slides(folder / "slides", EncoderSource(str(model)), bags, engine, settings=settings)


def train(folder: Path, runs: Path, target: dict[str, str], encoder: Path) -> Path:
    study = slide_study(
        folder,
        target,
        model={"head": "mean", "widths": [4], "finetune": {"encoder": str(encoder), "blocks": 1, "lr_scale": 1.0}},
        training={"epochs": 1, "patches": 3},
        protocol={"split": {"k": 2, "inner_k": 0}},
        tables={"sites": None},
    )
    opened = SlideStudy(study)
    return opened.run(study, opened.folds[0], runs, stop=StopFlag())


def test_only_the_last_block_learns_and_the_tuned_encoder_embeds(cohort: Path, tmp_path: Path) -> None:
    run = train(cohort, tmp_path / "runs", {"kind": "survival", "event": "OS"}, cohort / "model")
    assert "last 1 blocks trained" in read_any_record(run).model_label
    began, tuned = (load_model(path).model.backbone.network for path in (cohort / "model", run / "model" / "encoder"))
    last = {id(parameter) for parameter in last_blocks(tuned, 1)}
    for (name, before), after in zip(began.named_parameters(), tuned.parameters(), strict=True):
        assert torch.equal(before, after) == (id(after) not in last), name
    embed(cohort, run / "model" / "encoder", tmp_path / "bags")
    assert load_head(run / "model").encoder == read_bag(tmp_path / "bags" / "P00.h5").encoder
    test = pd.read_parquet(run / "outputs.parquet").query("part == 'test' and output == ''").set_index("patient")["value"]
    tables = SlideTables(clinical=(cohort / "clinical.csv",), slides=cohort / "slides.csv")
    only = tables.model_copy(update={"slides": tmp_path / "slides.csv"})
    pd.DataFrame({"PATIENT": test.index, "FILENAME": test.index}).to_csv(tmp_path / "slides.csv", index=False)
    found = deploy([run], tmp_path / "bags", only).results.outputs.query("output == ''").set_index("patient")["raw"]
    threshold = pd.read_json(run / "fitted.json")["threshold"][0]
    np.testing.assert_allclose(found.loc[test.index] + threshold, test, atol=2e-3)
    with pytest.raises(ModelError, match="is of encoder"):
        deploy([run], cohort / "bags", only)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "tiny"])
def test_the_last_blocks_are_the_ones_nearest_the_features(name: str) -> None:
    network = create_backbone(name, window_px=64).network
    all_of_them = [id(parameter) for parameter in network.parameters()]
    last = {id(parameter) for parameter in last_blocks(network, 1)}
    more = {id(parameter) for parameter in last_blocks(network, 2)}
    assert last < more < set(all_of_them)
    assert all_of_them[0] not in more
    assert all_of_them[-1] in last
    with pytest.raises(ModelError, match="is not between 1 and that"):
        last_blocks(network, 500)
