"""Studies as data: what is written is what runs, and everything else is refused in one clear line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stexpr.config import (
    BASELINES,
    AuxiliaryConfig,
    ColorRidgeConfig,
    FrozenConfig,
    NetworkConfig,
    PrepareConfig,
    StudyConfig,
    TrainingMeanConfig,
    content_hash,
    described,
    load_study,
    prepare_config,
    resource_folder,
    validated,
)
from stexpr.config.any_study import load_any_study
from stexpr.config.values import find_config, read_yaml, set_override
from stexpr.errors import ConfigError

STUDY = {"cohort": "cohorts/mob"}


def study(**changes: Any) -> StudyConfig:
    return StudyConfig.model_validate({**STUDY, **changes})


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validated(StudyConfig, {**STUDY, **values}, "mine.yaml")
    text = str(caught.value)
    assert text.startswith("mine.yaml: ")
    assert "\n" not in text
    return text.removeprefix("mine.yaml: ")


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- what a study says -----------------------------------------------------------------------------------------------


def test_a_model_without_a_kind_is_a_network(tmp_path: Path) -> None:
    path = write(tmp_path, "cohort: c\nmodel: {backbone: densenet121}\n")
    assert load_study(path).model == NetworkConfig(backbone="densenet121")
    assert load_study(path, ["model.auxiliary.weight=0"]).model.auxiliary.weight == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "model",
    [NetworkConfig(), TrainingMeanConfig(), ColorRidgeConfig(alphas=(1.0,)), FrozenConfig(backbone="uni", mpp="window")],
)
def test_a_study_survives_yaml(tmp_path: Path, model: Any) -> None:
    config = study(model=model, seed=3, folds=(1, 0))
    path = write(tmp_path, yaml.safe_dump(config.model_dump(mode="json")))
    assert load_study(path) == config


def test_every_study_that_comes_with_stexpr_is_valid() -> None:
    paths = sorted((resource_folder("configs") / "studies").glob("*.yaml"))
    assert paths
    for path in paths:
        assert load_study(path.stem) == load_study(path)
        assert path.read_text(encoding="utf-8").startswith("#"), f"{path} opens with what it does"


def test_keys_that_came_later_leave_the_hash_of_earlier_runs() -> None:
    """The hash of the study `mob` and of its description, as the version before `model.weights` had them."""
    assert load_study("mob").run_hash("x", {}) == "e55686a5bd98e4ef"
    changed = ["model.auxiliary.weight=0.5", "model.loss=mse_pearson", "seed=3"]
    assert load_study("mob", changed).run_hash("x", {}) == "3e87058f7f99934e"
    assert load_any_study("mutation").run_hash("x", "y", {}) == "a0c1005b79808cc5"
    assert described(NetworkConfig()).keys() == {"kind", "backbone", "pretrained", "auxiliary", "loss", "bias_init"}
    assert described(NetworkConfig(freeze="all"))["freeze"] == "all"
    assert described(NetworkConfig())["auxiliary"] == {"weight": 1.0, "standardize": True}
    assert described(NetworkConfig(auxiliary=AuxiliaryConfig(n_genes=9)))["auxiliary"]["n_genes"] == 9
    assert study(training={"average": 0.9}).training.described() == study().training.described() | {"average": 0.9}
    assert "pretrain" not in study().training.described()
    assert study(training={"pretrain": {}}).training.described()["pretrain"]["epochs"] == 20
    assert study(runtime={"download": True}).run_hash("x", {}) == study().run_hash("x", {})
    assert study(model={"freeze": "all"}).run_hash("x", {}) != study().run_hash("x", {})


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ({"backbone": "uni", "pretrained": True}, "uni + aux pretrained"),
        ({"backbone": "hf-hub:MahmoodLab/UNI@main", "freeze": "all", "auxiliary": {"weight": 0}}, "UNI@main frozen"),
        ({"backbone": "local-dir:/home/me/encoders/mine"}, "mine + aux"),
        ({"backbone": "resnet18", "weights": "/home/me/a.safetensors"}, "resnet18 of a.safetensors + aux"),
        ({"loss": "huber", "rank": 32}, "resnet18 + aux huber rank 32"),
        ({"auxiliary": {"n_genes": 500, "weight": 0.5}}, "resnet18 + 0.5 aux of 500 genes"),
        ({"auxiliary": {"n_genes": 500, "weight": 0}}, "resnet18"),
        ({"kind": "frozen", "backbone": "uni"}, "uni + ridge"),
        (
            {"kind": "frozen", "backbone": "uni", "components": None, "mpp": "window"},
            "uni + ridge of all features of the window",
        ),
        ({"kind": "frozen", "backbone": "resnet18", "pretrained": False, "mpp": 1}, "resnet18 + ridge at 1 um/px untrained"),
    ],
    ids=str,
)
def test_a_label_names_no_folder_of_this_machine(model: dict[str, Any], label: str) -> None:
    assert study(model=model).model.label == label


@pytest.mark.parametrize(
    ("values", "place"),
    [({"mpp": 0}, "model.mpp"), ({"mpp": "wide"}, "model.mpp"), ({"components": 0}, "model.components"), ({"head": 1}, "head")],
    ids=str,
)
def test_a_frozen_encoder_that_cannot_be_is_refused(values: dict[str, Any], place: str) -> None:
    assert place in refusal({"model": {"kind": "frozen", "backbone": "uni", **values}})


@pytest.mark.parametrize("loss", ["mse_pearson", "negative_binomial"])
def test_factors_of_another_loss_are_refused(loss: str) -> None:
    assert f"model.rank = 8 makes factors of standardized expression, which the loss {loss}" in refusal(
        {"model": {"rank": 8, "loss": loss}}
    )
    assert study(model={"rank": 8, "loss": "huber"}).run_hash("x", {}) != study(model={"loss": "huber"}).run_hash("x", {})


@pytest.mark.parametrize("loss", ["mse_pearson", "negative_binomial"])
def test_mixing_what_has_no_targets_is_refused(loss: str) -> None:
    said = refusal({"training": {"mixup": 0.2}, "model": {"loss": loss}})
    assert f"training.mixup = 0.2 mixes targets spot by spot, and the loss {loss} compares none; take model.loss=mse" in said
    assert study(training={"mixup": 0.2}).baseline(BASELINES[0]).training.mixup == 0


def test_bags_are_not_mixed() -> None:
    with pytest.raises(ConfigError, match=r"training.mixup = 0.2: bags of unlike sizes are not mixed"):
        load_any_study("mutation", ["training.mixup=0.2"])
    assert load_any_study("mutation", ["training.average=0.9"]).training.average == 0.9


def test_a_number_that_yaml_takes_for_a_string_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "cohort: c\ntraining: {lr: 1e-3}\n")
    assert load_study(path).training.lr == 1e-3
    assert load_study(path, ["training.lr=2e-3", "training.clip_norm=null"]).training.model_dump(
        include={"lr", "clip_norm"}
    ) == {"lr": 2e-3, "clip_norm": None}


def test_false_is_false(tmp_path: Path) -> None:
    assert load_study(write(tmp_path, "cohort: c"), ["input.symmetries=False"]).input.symmetries is False


def test_a_schema_can_be_printed() -> None:
    schema = StudyConfig.model_json_schema()
    assert {"NetworkConfig", "TrainingMeanConfig", "ColorRidgeConfig"} <= schema["$defs"].keys()
    json.dumps(schema)


def test_a_config_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        study().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "label"),
    [
        (NetworkConfig(backbone="resnet18"), "resnet18 + aux"),
        (NetworkConfig.model_validate({"backbone": "resnet18", "auxiliary": {"weight": 0}}), "resnet18"),
        (
            NetworkConfig.model_validate({"loss": "negative_binomial", "pretrained": True, "auxiliary": {"weight": 0.5}}),
            "resnet18 + 0.5 aux negative binomial pretrained",
        ),
        (TrainingMeanConfig(), "training mean"),
        (ColorRidgeConfig(), "color ridge"),
    ],
)
def test_labels(model: Any, label: str) -> None:
    assert model.label == label


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, "unknown key 'sed'; did you mean 'seed'?"),
        ({"model": {"backbon": "x"}}, "unknown key 'model.backbon'; did you mean 'backbone'?"),
        ({"model": {"auxiliary": {"wait": 1}}}, "unknown key 'model.auxiliary.wait'; did you mean 'weight'?"),
        (
            {"model": {"kind": "color_ridge", "backbone": "x"}},
            "unknown key 'model.backbone'; known: alphas, kind, radii_px",
        ),
        ({"model": {"kind": "netwrk"}}, "model.kind = 'netwrk'; did you mean 'network'?"),
        ({"model": {"kind": None}}, "model.kind is empty"),
        ({"model": "resnet18"}, "model = 'resnet18' is not keys and values"),
        ({"protocol": {"panel": {"n_mian": 2}}}, "unknown key 'protocol.panel.n_mian'; did you mean 'n_main'?"),
        ({"protocol": 3}, "protocol = 3: "),
        ({"training": {"optimizer": "adam"}}, "training.optimizer = 'adam': Input should be 'adamw' or 'sgd'"),
        ({"training": {"lr": 0}}, "training.lr = 0: Input should be greater than 0"),
        ({"training": {"lr": float("nan")}}, "training.lr = nan: "),
        ({"training": {"epochs": 1.5}}, "training.epochs = 1.5: "),
        ({"input": {"symmetries": "maybe"}}, "input.symmetries = 'maybe': "),
        ({"seed": -1}, "seed = -1: Input should be greater than or equal to 0"),
        ({"protocol": {"panel": {"rule": "list"}}}, "protocol.panel: the rule `list` needs protocol.panel.genes"),
        ({"protocol": {"panel": {"genes": ["A"]}}}, "protocol.panel: the rule `list` needs protocol.panel.genes"),
        ({"protocol": {"panel": {"n_main": 1, "include": ["A", "B"]}}}, "protocol.panel: panel.include names 2 genes"),
        ({"protocol": {"split": {"rule": "fixed"}}}, "protocol.split: the split `fixed` needs"),
        ({"protocol": {"split": {"test_patients": ["A"]}}}, "protocol.split: the split `fixed` needs"),
        ({"protocol": {"split": {"rule": "file"}}}, "protocol.split: the split `file` needs"),
        ({"protocol": {"validation": {"splits": 3, "refit": False}}}, "protocol.validation: with several inner partitions"),
        ({"protocol": {"validation": {"fraction": 2}}}, "protocol.validation.fraction = 2: "),
    ],
)
def test_a_wrong_value_is_told_with_its_place(values: dict[str, Any], message: str) -> None:
    assert refusal(values).startswith(message)


def test_all_mistakes_are_told_at_once() -> None:
    text = refusal({"sed": 1, "seed": -1})
    assert "'sed'" in text
    assert "seed = -1" in text


def test_a_study_needs_a_cohort() -> None:
    with pytest.raises(ConfigError, match="'cohort' is missing"):
        validated(StudyConfig, {}, "mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "holds list, not keys and values"),
        ("", "holds NoneType"),
        ("a: !!python/object:os.system x", "is not YAML"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(write(tmp_path, text))
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("name: Zürich".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(tmp_path / "x.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_an_unknown_study_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no configuration 'mobb'; did you mean 'mob'\?"):
        find_config("mobb", "studies")
    with pytest.raises(ConfigError, match="no configuration"):
        find_config("nowhere/mob", "studies")  # a path is never taken for a name


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["training.lr", "=3", ""])
def test_an_override_needs_a_key_and_a_value(override: str) -> None:
    with pytest.raises(ConfigError, match="not of the form key=value"):
        set_override({}, override)


def test_the_value_of_an_override_is_yaml() -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        set_override({}, "a=[1,")


KEYS = st.lists(st.text("abcdef_", min_size=1, max_size=5), min_size=1, max_size=4)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text("xyz", min_size=1), st.lists(st.integers()))


@settings(max_examples=60, deadline=None)
@given(path=KEYS, value=VALUES, other=st.integers())
def test_an_override_sets_one_value_and_leaves_the_rest(path: list[str], value: Any, other: int) -> None:
    values: dict[str, Any] = {"zzz": other, path[0]: other}
    set_override(values, f"{'.'.join(path)}={json.dumps(value)}")
    assert values["zzz"] == other
    reached: Any = values
    for key in path:
        reached = reached[key]
    assert reached == value


def test_an_unknown_override_is_refused_like_an_unknown_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'training.lrr'; did you mean 'lr'\?"):
        load_study(write(tmp_path, "cohort: c"), ["training.lrr=1"])


def test_prepare_settings_of_a_card_can_be_overridden() -> None:
    card = PrepareConfig(mpp=1.5, window_px=64)
    assert prepare_config(card, ["window_px=32"], "card") == PrepareConfig(mpp=1.5, window_px=32)
    assert prepare_config(None, ["mpp=2", "window_px=32"], "card") == PrepareConfig(mpp=2, window_px=32)
    with pytest.raises(ConfigError, match="card: 'mpp' is missing"):
        prepare_config(None, ["window_px=32"], "card")
    with pytest.raises(ConfigError, match="stain normalization needs stain_reference"):
        prepare_config(card, ["stain=macenko"], "card")
    with pytest.raises(ConfigError, match="stain normalization needs stain_reference"):
        prepare_config(card, ["stain_reference=A1"], "card")


# --- hashes ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=4)), max_size=5))
def test_a_hash_ignores_the_order_of_keys_and_nothing_else(values: dict[str, Any]) -> None:
    assert content_hash(values) == content_hash(dict(reversed(values.items())))
    assert content_hash(values) != content_hash({**values, "one more key": 0})
    assert len(content_hash(values)) == 16


FOLD = {"index": 0, "test": ["A"]}


def test_the_former_word_for_a_tracker_is_read_and_not_offered() -> None:
    assert study(runtime={"tracker": "none"}).runtime.tracker == "jsonl"
    assert StudyConfig.model_json_schema()["$defs"]["RuntimeConfig"]["properties"]["tracker"]["enum"] == ["jsonl", "wandb"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"cohort": "elsewhere"},
        {"folds": (0,)},
        {"runtime": {"workers": 2, "tracker": "none", "device": "cpu"}},
    ],
)
def test_what_cannot_change_a_result_keeps_the_run(changes: dict[str, Any]) -> None:
    assert study(**changes).run_hash("c", FOLD) == study().run_hash("c", FOLD)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"model": {"backbone": "resnet50"}},
        {"model": {"kind": "training_mean"}},
        {"training": {"lr": 1e-4}},
        {"training": {"pretrain": {}}},
        {"input": {"window_px": 32}},
        {"protocol": {"panel": {"n_main": 10}}},
    ],
)
def test_what_can_change_a_result_makes_another_run(changes: dict[str, Any]) -> None:
    assert study(**changes).run_hash("c", FOLD) != study().run_hash("c", FOLD)


def test_cohort_and_fold_make_another_run() -> None:
    runs = {study().run_hash(cohort, fold) for cohort in ("c", "d") for fold in (FOLD, {**FOLD, "test": ["B"]})}
    assert len(runs) == 4


def test_the_place_of_a_folds_file_is_no_part_of_a_protocol() -> None:
    here, there = (study(protocol={"split": {"rule": "file", "file": name}}).protocol for name in ("a.json", "b/a.json"))
    assert here.hash == there.hash != study().protocol.hash


def test_networks_under_one_protocol_share_their_baselines() -> None:
    first = study(model={"backbone": "resnet18"}, training={"lr": 0.1}, seed=4, name="one")
    second = study(model={"backbone": "densenet121"}, input={"window_px": 64}, name="two")
    for baseline in BASELINES:
        assert first.baseline(baseline).run_hash("c", FOLD) == second.baseline(baseline).run_hash("c", FOLD)
        assert first.baseline(baseline).protocol == first.protocol
    other = study(protocol={"panel": {"n_main": 10}})
    assert other.baseline(BASELINES[0]).run_hash("c", FOLD) != first.baseline(BASELINES[0]).run_hash("c", FOLD)


def test_a_broken_installation_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("stexpr.config.values.__file__", str(tmp_path / "stexpr" / "settings.py"))
    with pytest.raises(ConfigError, match="the installation is incomplete"):
        resource_folder("configs")
