"""Readers and workers of Ray Data make the bags that one process makes; Ray in a process of its own, as in engines/test_ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slides import slide_pixels, write_slide, write_slide_model
from stexpr.data.bag_store import BagStore
from stexpr.data.bags import read_bag
from stexpr.engines.ray.pipeline import Message
from stexpr.inference.bags import EmbedSettings, embed_slide
from stexpr.inference.encoder import ModelInput, open_encoder

ALL = EmbedSettings(expression=True, patches=True)
DRIVER = """
import json, sys
from pathlib import Path
from stexpr.engines.ray.pipeline import RayPipeline
from stexpr.inference.bags import EmbedSettings
from stexpr.train.slides.embed import embed_slides
from stexpr.train.slides.embed_job import EncoderSource
from stexpr.train.slides.embed_pipeline import PipelinedEngine
folder = Path(sys.argv[1])
engine = PipelinedEngine(RayPipeline(readers=2, workers=2))
source = EncoderSource(str(folder / "model"), device="cpu", batch_size=8)
settings = EmbedSettings(expression=True, patches=True)
def embed():
    found = embed_slides(folder / "slides", source, folder / "bags", engine, settings=settings)
    return [found.n_before, found.n_done, found.n_left, found.quarantined, found.without_tissue]
said = [embed(), embed()]
engine._pipeline.close()
(folder / "said.json").write_text(json.dumps(said))
"""


@pytest.mark.timeout(400)
def test_the_pipeline_makes_the_bags_that_one_process_makes(tmp_path: Path) -> None:
    model = write_slide_model(tmp_path / "model")
    (tmp_path / "slides").mkdir()
    for i in range(3):
        write_slide(tmp_path / "slides" / f"{i}.tif", slide_pixels(300, 450, seed=i))
    (tmp_path / "slides" / "broken.svs").write_text("no slide")
    write_slide(tmp_path / "slides" / "glass.tif", np.full((200, 300, 3), 244, np.uint8))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path)], capture_output=True, text=True, check=False, timeout=350, env=environment
    )
    assert done.returncode == 0, done.stderr
    first, again = json.loads((tmp_path / "said.json").read_text())
    assert first[:3] == [0, 3, 0]
    assert list(first[3]) == ["broken"]
    assert first[4] == ["glass"]
    assert again[:3] == [3, 0, 0]
    store = BagStore.open(tmp_path / "bags")
    assert list(store.bags) == ["0", "1", "2"]
    loaded = open_encoder(model)
    for slide, bag in store.bags.items():
        path = tmp_path / "alone" / f"{slide}.h5"
        alone = embed_slide(tmp_path / "slides" / f"{slide}.tif", loaded, path, settings=ALL, batch_size=8)
        np.testing.assert_array_equal(bag.coords(), alone.coords())
        np.testing.assert_array_equal(bag.patches(np.arange(bag.n)), alone.patches(np.arange(bag.n)))
        np.testing.assert_array_equal(bag.features("color"), alone.features("color"))
        np.testing.assert_allclose(bag.features("both"), alone.features("both"), atol=2e-3, rtol=2e-3)
        assert bag.provenance == alone.provenance
        assert (bag.genes, bag.size_px, bag.encoder) == (alone.genes, alone.size_px, alone.encoder)
    assert read_bag(tmp_path / "bags" / "0.h5").n > 8  # several messages


def test_a_message_and_what_a_model_sees_go_round(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": np.zeros((0, 4), np.float32)}
    back = Message.from_bytes(Message({"n": 1, "words": ["µ"]}, arrays).to_bytes())
    assert back.header == {"n": 1, "words": ["µ"]}
    for key, values in arrays.items():
        np.testing.assert_array_equal(back.arrays[key], values)
        assert back.arrays[key].dtype == values.dtype
    sees = ModelInput.of(open_encoder(write_slide_model(tmp_path)))
    assert ModelInput.from_json(json.loads(json.dumps(sees.to_json()))) == sees
