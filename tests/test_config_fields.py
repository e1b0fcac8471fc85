"""Several fields of view as a setting: hashes of earlier runs, what is refused, and the name on a board."""

from typing import Any

import pytest
from pydantic import ValidationError

from stexpr.config import BASELINES, InputConfig, StudyConfig, load_study, study_of
from stexpr.errors import ConfigError


def study(**keys: Any) -> StudyConfig:
    return study_of({"cohort": "somewhere", **keys}, "here")


def test_without_fields_runs_keep_their_hashes_and_records_their_settings() -> None:
    """The hash of the study `mob` as the version before `input.fields_px` had it."""
    assert load_study("mob").run_hash("x", {}) == "e55686a5bd98e4ef"
    assert "fields_px" not in InputConfig().described()
    plain = InputConfig(window_px=64)
    assert plain.described() == plain.model_dump(mode="json", exclude={"fields_px", "colors"})


def test_fields_decide_a_result() -> None:
    hashes = {study(input={"fields_px": fields}).run_hash("x", {}) for fields in (None, [64, 256], [64, 128], [64, 128, 256])}
    assert len(hashes) == 4
    assert study(input={"fields_px": [256, 64]}).run_hash("x", {}) == study(input={"fields_px": [64, 256]}).run_hash("x", {})
    assert InputConfig(fields_px=(256, 64)).described()["fields_px"] == [64, 256]


def test_the_window_is_the_largest_field() -> None:
    assert InputConfig(fields_px=(256, 64)).asked_px == 256
    assert InputConfig(fields_px=(256, 64), window_px=256).asked_px == 256
    assert (InputConfig(window_px=64).asked_px, InputConfig().asked_px) == (64, None)
    with pytest.raises(ValidationError, match=r"the window is the largest of input\.fields_px, 256 px"):
        InputConfig(fields_px=(64, 256), window_px=64)


@pytest.mark.parametrize(
    ("fields_px", "words"),
    [
        ([64], "a single one is input.window_px"),
        ([], "a single one is input.window_px"),
        ([64, 64, 256], "a side is named twice"),
        ([8, 64], "greater than or equal to 16"),
        ([64.5, 256], "valid integer"),
        (64, "valid tuple"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields_px: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        study(input={"fields_px": fields_px})


@pytest.mark.parametrize("model", [{"kind": "frozen", "backbone": "uni"}, {"kind": "color_ridge"}])
def test_only_a_trained_network_sees_several(model: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"a model of kind {model['kind']} sees one field of view"):
        study(input={"fields_px": [64, 256]}, model=model)


def test_the_label_says_how_many() -> None:
    config = study(input={"fields_px": [64, 256]}, model={"backbone": "resnet18", "auxiliary": {"weight": 0}})
    assert config.label == "resnet18, 2 fields"
    assert study(model=config.model).label == "resnet18"
    assert config.baseline(BASELINES[0]).label == "training mean"
