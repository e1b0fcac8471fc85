"""The published protocols as presets."""

from pathlib import Path

import pytest

from stexpr.config import ProtocolConfig, load_protocol, load_study, preset_names
from stexpr.errors import ConfigError

FIXED = {"split": {"test_patients": ["A"]}}


def test_the_default_is_the_preset_stexpr_and_looks_at_no_test_data() -> None:
    assert load_protocol("stexpr") == ProtocolConfig()
    assert ProtocolConfig().leaks == ()
    assert preset_names() == ("stexpr", "brstnet", "hest", "stnet", "triplex")


@pytest.mark.parametrize("name", [name for name in preset_names() if name != "stexpr"])
def test_every_other_preset_admits_its_leak_and_says_why(name: str) -> None:
    protocol = load_protocol(name, FIXED if name == "brstnet" else {})
    assert protocol.leaky
    assert protocol.leaks
    assert protocol.why
    assert protocol.deviations
    assert protocol.name == name


def test_brstnet_records_macenko_as_a_deviation() -> None:
    protocol = load_protocol("brstnet", FIXED)
    assert protocol.stain == "macenko"
    assert any("Macenko's, not Vahadane's" in words for words in protocol.deviations)
    assert (protocol.min_counts, protocol.counted, protocol.expression.kind) == (1000, "median_r", "log1p")
    with pytest.raises(ConfigError, match=r"`fixed` needs protocol\.split\.test_patients"):
        load_protocol("brstnet")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"panel": {"scope": "cohort"}}, "genes are chosen on test spots"),
        ({"validation": {"rule": "test", "refit": False}}, "epochs is chosen on the test patients"),
        ({"expression": {"smoothing": "neighbors"}}, "smoothed over their neighbors"),
    ],
)
def test_a_leak_that_is_not_admitted_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"{words}.*protocol.leaky=true"):
        load_protocol("stexpr", change)
    assert words in load_protocol("stexpr", {**change, "leaky": True}).leaks[0]


def test_a_study_takes_a_preset_by_name_and_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("cohort: c\nprotocol: hest\n")
    assert load_study(path).protocol == load_protocol("hest")
    path.write_text("cohort: c\nprotocol: {preset: hest, panel: {n_main: 40}}\n")
    assert load_study(path).protocol.name == "hest, changed in panel.n_main"
    changed = load_study(path, ["protocol.panel.n_main=50", "protocol.panel.include=[MKI67]"]).protocol
    assert (changed.name, changed.panel.include, changed.window_um) == ("hest", ("MKI67",), 112)
    assert load_study(path, ["protocol=stnet"]).protocol == load_protocol("stnet")
    assert load_study(path, ["protocol=stnet", "protocol.pooling=within_section"]).protocol.name == "stnet, changed in pooling"
    assert load_study(path, ["protocol.name=mine"]).protocol.name == "mine"


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("tripel", "no configuration 'tripel'.*triplex"),
        ("{preset: 3}", r"protocol.preset = 3 is not a name; take one of stexpr"),
        ("{preset: hest, pool: pooled}", "unknown key 'protocol.pool'.*pooling"),
        ("{expression: {kind: stnet, library: panel}}", "its library is the whole one"),
        ("{leaky: true, validation: {rule: test}}", "set protocol.validation.refit=false"),
    ],
)
def test_wrong_protocols_are_one_clear_line(tmp_path: Path, protocol: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"cohort: c\nprotocol: {protocol}\n")
    with pytest.raises(ConfigError, match=message):
        load_study(path)
