"""A folder of slides becomes a folder of bags, whatever is broken, killed, stopped, doubled or changed on the way."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from slides import slide_pixels, write_slide, write_slide_model
from stexpr.data.bag_store import BagStore
from stexpr.data.bags import read_bag
from stexpr.engines.tasks import Outcome, Task
from stexpr.errors import ConfigError, DataError, ModelError, TrainingError
from stexpr.inference.bags import EmbedSettings
from stexpr.train.checkpoint import InterruptedTrainingError
from stexpr.train.folder import BusyError, exclusive
from stexpr.train.slides.embed import STATE, EmbedResult, embed_slides
from stexpr.train.slides.embed_job import EncoderSource
from sweeps import HereEngine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good slides, one of them in a folder of its own."""
    for i, name in enumerate(("a.tif", "b.ome.tif", "of an archive/c.tif")):
        (tmp_path / "slides" / name).parent.mkdir(parents=True, exist_ok=True)
        write_slide(tmp_path / "slides" / name, slide_pixels(200, 300, seed=i))
    return tmp_path / "slides"


def embedded(folder: Path, model: Path, **how: object) -> tuple[EmbedResult, list[str], list[str]]:
    lines: list[str] = []
    engine = HereEngine()
    source = EncoderSource(str(model), device="cpu")
    result = embed_slides(folder, source, folder.parent / "bags", engine, report=lines.append, **how)
    return result, engine.performed, lines


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder.parent / "bags" / "slides.csv").open(newline="") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def quarantined(folder: Path) -> list[dict[str, str]]:
    return json.loads((folder.parent / "bags" / "quarantine.json").read_text())


def test_every_slide_gets_its_bag_and_only_once(folder, model):
    (folder / "notes.txt").write_text("no slide")
    (folder / ".hidden.tif").write_text("hidden")
    result, performed, lines = embedded(folder, model, settings=EmbedSettings(expression=True))
    assert (result.n_done, result.n_before, result.n_left, result.is_complete) == (3, 0, 0, True)
    assert performed == ["a", "b.ome", "c"]
    assert "[3/3] c: " in lines[-1]
    assert result.ignored == {".txt": 1}
    store = BagStore.open(folder.parent / "bags")
    assert (list(store.bags), len(store.genes)) == (["a", "b.ome", "c"], 6)
    rows = table(folder)
    assert [int(rows[slide]["patches"]) for slide in store.bags] == [bag.n for bag in store.bags.values()]
    assert all(float(row["seconds"]) > 0 and row["level0_mpp"] == "1" and len(row["sha256"]) == 64 for row in rows.values())
    assert "no tissue" in rows["a"]["left_out"]
    again, performed, _ = embedded(folder, model, settings=EmbedSettings(expression=True))
    assert (again.n_done, again.n_before, performed) == (0, 3, [])
    assert table(folder) == rows
    (folder.parent / "bags" / "b.ome.h5").unlink()
    (folder.parent / "bags" / "c.h5").write_bytes(b"torn")
    third, performed, _ = embedded(folder, model, settings=EmbedSettings(expression=True))
    assert (third.n_done, third.n_before, performed) == (2, 1, ["b.ome", "c"])
    assert any("bag of slide c could not be read and is made anew" in note for note in third.notes)
    assert BagStore.open(folder.parent / "bags").hash == store.hash


def test_bags_of_another_encoder_or_other_settings_are_refused_by_name(folder, model, tmp_path):
    embedded(folder, model)
    other = write_slide_model(tmp_path / "other", window_px=48)
    with pytest.raises(ConfigError, match=r"bags of another encoder \(.*\): 3 slides \(a, b\.ome, c\); take another folder"):
        embedded(folder, other)
    for settings, words in (
        (EmbedSettings(min_tissue=0.3), r"slide a has min_tissue = 0\.5, asked for is 0\.3"),
        (EmbedSettings(expression=True), "slide a has expression = False, asked for is True"),
    ):
        with pytest.raises(ConfigError, match=words):
            embedded(folder, model, settings=settings)


def test_slides_that_cannot_be_read_are_put_in_quarantine_and_the_others_go_on(folder, model):
    (folder / "broken.svs").write_bytes(b"no slide")
    write_slide(folder / "glass.tif", np.full((200, 300, 3), 244, np.uint8))
    write_slide(folder / "bare.tif", slide_pixels(200, 300), mpp=None)
    result, performed, lines = embedded(folder, model)
    assert len(performed) == 6
    assert (result.n_done, result.n_left, set(result.quarantined)) == (3, 0, {"broken", "bare"})
    assert result.without_tissue == ("glass",)
    assert not result.is_complete
    assert any(line.startswith("[") and "broken: QUARANTINED: " in line for line in lines)
    entries = {entry["slide"]: entry for entry in quarantined(folder)}
    assert set(entries) == {"broken", "bare", "glass"}
    assert "give them (--mpp)" in entries["bare"]["error"]
    assert entries["glass"]["became"] == "no tissue"
    assert table(folder)["broken"]["patches"] == "0"
    words = result.in_words(folder.parent / "bags")
    for part in ("slide broken in quarantine: ", "--retry tries them again", "1 slide (glass) without a patch of tissue"):
        assert part in words
    again, performed, _ = embedded(folder, model)
    assert performed == []
    assert set(again.quarantined) == {"broken", "bare"}
    _, performed, _ = embedded(folder, model, retry=True)
    assert performed == ["bare", "broken", "glass"]
    write_slide(folder / "bare.tif", slide_pixels(200, 300), mpp=1.0)  # mended: tried again by itself
    mended, performed, _ = embedded(folder, model)
    assert performed == ["bare"]
    assert (mended.n_done, set(mended.quarantined)) == (1, {"broken"})


def test_a_scale_is_given_for_the_slides_that_do_not_say(folder, model):
    write_slide(folder / "bare.tif", slide_pixels(200, 300), mpp=None)
    assert set(embedded(folder, model)[0].quarantined) == {"bare"}
    result, performed, _ = embedded(folder, model, settings=EmbedSettings(mpp=0.5), retry=True)
    assert (performed, result.n_before, result.is_complete) == (["bare"], 3, True)
    assert (table(folder)["bare"]["level0_mpp"], table(folder)["a"]["level0_mpp"]) == ("0.5", "1")
    with pytest.raises(ConfigError, match=r"slide bare has mpp = 0\.5, asked for is 0\.25"):
        embedded(folder, model, settings=EmbedSettings(mpp=0.25))


def test_the_same_slide_twice_is_named(folder, model):
    shutil.copy(folder / "a.tif", folder / "z copy.tif")
    result, _, _ = embedded(folder, model)
    assert result.twice == {"z copy": "a"}
    assert "slide z copy is the same as a: keep one of them" in result.in_words(folder)
    assert table(folder)["z copy"]["same_as"] == "a"


def test_two_files_of_one_name_are_refused(folder, model):
    write_slide(folder / "c.tif", slide_pixels(200, 300))
    with pytest.raises(DataError, match=r"slide 'c' is the name of 2 files"):
        embedded(folder, model)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no slide"):
        embedded(folder / "empty", model)


def test_a_slide_or_regions_that_changed_are_embedded_again(folder, model, tmp_path):
    rois = tmp_path / "rois"
    rois.mkdir()
    square = {"type": "Polygon", "coordinates": [[[0, 0], [150, 0], [150, 200], [0, 200]]]}
    (rois / "a.geojson").write_text(json.dumps(square))
    result, _, _ = embedded(folder, model, rois=rois)
    assert result.without_rois == ("b.ome", "c")
    assert "2 slides (b.ome, c) taken whole" in result.in_words(folder)
    assert [table(folder)[slide]["rois"] for slide in ("a", "c")] == ["1", ""]
    before = read_bag(tmp_path / "bags" / "a.h5").n
    square["coordinates"][0][1][0] = square["coordinates"][0][2][0] = 300
    (rois / "a.geojson").write_text(json.dumps(square))
    write_slide(folder / "of an archive" / "c.tif", slide_pixels(220, 300))
    again, performed, _ = embedded(folder, model, rois=rois)
    assert performed == ["a", "c"]
    assert read_bag(tmp_path / "bags" / "a.h5").n > before
    assert [note.split(" changed")[0] for note in again.notes] == ["the regions of interest of slide a", "the file of slide c"]
    with pytest.raises(ConfigError, match="is no folder; regions of interest"):
        embedded(folder, model, rois=rois / "none")


def test_a_slide_table_chooses_slides_and_names_those_without_file(folder, model):
    (folder / "slides.csv").write_text("PATIENT,FILENAME\np1,a\np1,c.tif\np2,gone\n")
    lines: list[str] = []
    engine = HereEngine()
    bags = folder.parent / "bags"
    result = embed_slides(folder / "slides.csv", EncoderSource(str(model), device="cpu"), bags, engine, report=lines.append)
    assert engine.performed == ["a", "c"]
    assert result.missing == ("gone",)
    assert "1 slide (gone) of the table without a file" in result.in_words(bags)


def test_what_is_no_slides_fault_ends_the_embedding(folder, model, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stexpr.train.slides.embed_job.embed_slide", full)
    with pytest.raises(TrainingError, match=r"the disk of .* is full"):
        embedded(folder, model)

    def out_of_memory(*args: object, **kwargs: object) -> None:
        raise ModelError("out of memory while predicting one patch")

    monkeypatch.setattr("stexpr.train.slides.embed_job.embed_slide", out_of_memory)
    with pytest.raises(ModelError, match="out of memory"):
        embedded(folder, model)
    assert not (folder.parent / "bags" / "quarantine.json").exists()
    with pytest.raises(ModelError):
        embedded(folder, folder)
    monkeypatch.undo()
    assert embedded(folder, model)[0].is_complete


def test_one_embedding_at_a_time(folder, model):
    with exclusive(folder.parent / "bags" / STATE, "being filled"), pytest.raises(BusyError, match="is being filled by"):
        embedded(folder, model)


def test_a_signal_stops_it_and_the_same_call_goes_on(folder, model):
    bags = folder.parent / "bags"

    def stop_after_one(line: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    engine = HereEngine()
    with pytest.raises(InterruptedTrainingError, match="the same command goes on"):
        embed_slides(folder, EncoderSource(str(model), device="cpu"), bags, engine, report=stop_after_one)
    assert (engine.performed, len(list(bags.glob("*.h5")))) == (["a"], 1)
    result, performed, _ = embedded(folder, model)
    assert (result.n_before, performed) == (1, ["b.ome", "c"])


def wait_for(happened: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.01)


def test_killed_it_loses_the_slide_it_was_at(folder, model):
    bags = folder.parent / "bags"
    for path in list(folder.rglob("*.tif")):
        path.unlink()
    for i in range(4):
        write_slide(folder / f"{i}.tif", slide_pixels(300, 450, seed=i))
    command = [sys.executable, "-m", "stexpr", "slides", "embed", str(folder), "-m", str(model), "-o", str(bags)]
    command += ["--device", "cpu", "--workers", "1", "--stride-um", "6", "--batch-size", "4"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: any(bags.glob("*.h5")) and any(bags.glob(".*.h5.part")), "a slide between others")
    running.kill()
    running.wait(timeout=30)
    wait_for(lambda: not any(bags.glob(".*.h5.part")), "the worker heard that its engine is gone")
    kept = {path.name: path.stat().st_mtime_ns for path in bags.glob("*.h5")}
    assert 1 <= len(kept) < 4
    result, performed, _ = embedded(folder, model, settings=EmbedSettings(stride_um=6.0))
    assert (result.n_before, len(performed)) == (len(kept), 4 - len(kept))
    assert len(BagStore.open(bags).bags) == 4
    assert all((bags / name).stat().st_mtime_ns == when for name, when in kept.items())


def test_a_slide_whose_worker_dies_is_put_in_quarantine(folder, model):
    class Dying(HereEngine):
        def run(self, tasks: Sequence[Task], stopped: Callable[[], bool]) -> Iterator[Outcome]:
            yield Outcome(tasks[0].key, error="its worker was killed by signal 9, 3 times; see logs")
            yield from super().run(tasks[1:], stopped)

    result = embed_slides(folder, EncoderSource(str(model), device="cpu"), folder.parent / "bags", Dying())
    assert result.n_done == 2
    assert "its worker was killed by signal 9" in result.quarantined["a"]
