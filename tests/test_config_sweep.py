from pathlib import Path

import pytest
import yaml

from stexpr.config import resource_folder
from stexpr.config.sweep import MANY, SweepConfig, load_sweep
from stexpr.errors import ConfigError

SWEEPS = sorted((resource_folder("configs") / "sweeps").glob("*.yaml"))


def written(folder: Path, **parts: object) -> Path:
    (folder / "base.yaml").write_text("{cohort: somewhere, model: {kind: network, backbone: tiny}}")
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "sweep", "study": "base.yaml", **parts}))
    return path


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_load(path: Path) -> None:
    sweep = load_sweep(path.stem)
    assert sweep.config.name == path.stem
    assert sweep.studies
    assert all(study.name == path.stem for study in sweep.studies)
    assert len(set(map(repr, sweep.studies))) == len(sweep.studies) == sweep.config.n_combinations - sweep.n_excluded


def test_a_sweep_is_every_combination_without_the_excluded(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        seeds=[3, 4],
        overrides={"training.lr": 0.01},
        grid={"model.backbone": ["tiny", "resnet18"]},
        zip={"training.batch_size": [8, 16], "training.epochs": [2, 4]},
        list=[{"input.symmetries": False}, {"model.auxiliary.weight": 0, "input.brightness": 0.1}],
        exclude=[{"model.backbone": "resnet18", "training.epochs": 4}],
    )
    sweep = load_sweep(path, ["training.epochs=1", "training.lr=0.02"])
    assert (len(sweep.studies), sweep.n_excluded, sweep.config.n_combinations) == (12, 4, 16)
    seen = [(s.seed, s.model.backbone, s.training.batch_size, s.training.epochs, s.input.symmetries) for s in sweep.studies]  # type: ignore[union-attr]
    assert seen[:4] == [(3, "tiny", 8, 2, False), (3, "tiny", 8, 2, True), (3, "tiny", 16, 4, False), (3, "tiny", 16, 4, True)]
    assert [seed for seed, *_ in seen] == [3] * 6 + [4] * 6
    assert ("resnet18", 8, 2) in {one[1:4] for one in seen}
    assert ("resnet18", 16, 4) not in {one[1:4] for one in seen}
    assert {study.training.lr for study in sweep.studies} == {0.02}
    assert {(s.input.symmetries, s.input.brightness) for s in sweep.studies} == {(False, 0.0), (True, 0.1)}


def test_a_sweep_of_nothing_is_its_base(tmp_path: Path) -> None:
    (study,) = load_sweep(written(tmp_path)).studies
    assert (study.name, study.seed) == ("sweep", 0)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"grid": {"modle.backbone": ["tiny"]}}, "no study has the key 'modle.backbone'.*model"),
        ({"grid": {"training.epoch": [1]}}, "unknown key 'training.epoch'.*epochs"),
        ({"grid": {"training.epochs": ["many"]}}, "training.epochs=many.*training.epochs = 'many'"),
        ({"grid": {"runtime.device": ["cpu"]}}, "name and runtime change no result"),
        ({"grid": {"seed": [1]}, "seeds": [2]}, "seed is an axis twice"),
        ({"grid": {"training.epochs": [1]}, "list": [{"training.epochs": 2}]}, "training.epochs is an axis twice"),
        ({"grid": {"training.epochs": [1, 1]}}, "names a value twice: 1, 1"),
        ({"grid": {"training.epochs": []}}, "grid.training.epochs"),
        ({"seeds": [1, 1]}, "seeds names a seed twice"),
        ({"zip": {"training.epochs": [1], "seed": [1, 2]}}, "one number of values, here: seed 2, training.epochs 1"),
        ({"exclude": [{"seed": 0}]}, "excludes all its 1 studies"),
        ({"exclude": [{"sed": 0}]}, "no study has the key 'sed'.*seed"),
        ({"gird": {}}, "unknown key 'gird'.*grid"),
        ({"name": "a/b"}, "name = 'a/b'"),
        ({"study": "nowhere"}, "no configuration 'nowhere'"),
    ],
)
def test_what_is_wrong_is_told(parts: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load_sweep(written(tmp_path, **parts))


def test_a_million_studies_are_asked_for_twice(tmp_path: Path) -> None:
    grid = {"seed": list(range(1000)), "training.epochs": list(range(1, 1001))}
    with pytest.raises(ConfigError, match=r"makes 1,000,000 studies, each of several runs; add --yes"):
        load_sweep(written(tmp_path, grid=grid))
    config = SweepConfig.model_validate({"name": "s", "study": "s", "grid": {"seed": list(range(MANY + 1))}})
    assert config.n_combinations == MANY + 1
