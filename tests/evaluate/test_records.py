"""Records survive the way to disk and back, and say what is wrong with those that do not."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted_runs import make_record
from pydantic import ValidationError

from stexpr.config import content_hash
from stexpr.config.versions import versions
from stexpr.errors import DataError
from stexpr.evaluate.records import Record, Value, read_record, read_records, write_record

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = st.dictionaries(
    TEXT, st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | NUMBERS | TEXT, st.lists), max_size=3
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLAIN, NUMBERS, st.none() | NUMBERS, st.lists(TEXT, max_size=3))
def test_round_trip(tmp_path: Path, protocol: dict[str, object], value: float, low: float | None, notes: list[str]) -> None:
    record = make_record(
        protocol=protocol, settings=protocol, values={"pearson": Value(value=value, low=low, interval="x")}, notes=tuple(notes)
    )
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_seed_and_fold_do_not_change_the_model() -> None:
    record = make_record()
    assert make_record(seed=3, config_hash="other").settings_hash == record.settings_hash
    assert make_record(settings={"training": {"lr": 0.1}}).settings_hash != record.settings_hash


def test_an_edited_protocol_is_found(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record())
    values = json.loads(path.read_text())
    values["protocol"]["pooling"] = "pooled"
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="the record was edited"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "states no format"),
        ("{}", "states no format"),
        ('{"format": 2}', "has format 2, this stexpr reads up to 1; install a newer stexpr"),
        ('{"format": 1, "tusk": "x"}', "unknown key 'tusk'; did you mean 'task'"),
    ],
)
def test_bad_records_are_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_record(tmp_path)


def test_undefined_is_null_and_infinity_is_refused() -> None:
    assert Value(value=None).model_dump_json().startswith('{"value":null')
    with pytest.raises(ValidationError):
        Value(value=float("nan"))
    with pytest.raises(ValidationError, match="needs a `kind`"):
        make_record(model={"backbone": "tiny"})


def test_runs_are_complete_or_listed(tmp_path: Path) -> None:
    for name, seed in (("b", 1), ("a", 0)):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, make_record(seed=seed))
    (tmp_path / "started").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "record.json").write_text("nonsense")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("not a run")
    runs = read_records(tmp_path)
    assert [run.folder.name for run in runs.complete] == ["a", "b"]
    assert [path.name for path, _ in runs.incomplete] == ["broken", "started"]
    assert "start it again to resume" in runs.incomplete[1][1]


def test_runs_of_unlike_kinds_are_separated(tmp_path: Path) -> None:
    pooled = {"name": "stexpr", "pooling": "pooled"}
    kinds = [
        make_record(),
        make_record(seed=1),
        make_record(protocol=pooled),
        make_record(task="ki67"),
        make_record(split_hash="s1"),
    ]
    for i, record in enumerate(kinds):
        (tmp_path / str(i)).mkdir()
        write_record(tmp_path / str(i), record)
    groups = read_records(tmp_path).separated()
    assert sorted(len(group) for group in groups.values()) == [1, 1, 1, 2]
    assert ("spot_expression", content_hash(pooled), "c0", "s0") in groups


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        read_records(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no run; make some with stexpr train"):
        read_records(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write into"):
        write_record(tmp_path / "file", make_record())


def test_versions_read_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    found = versions(["numpy", "no-such-package"])
    assert found["no-such-package"] == "not installed"
    assert found["numpy"].startswith("2")
    assert "a-secret" not in json.dumps({**versions(), **found})
    assert not {"environment", "env", "hostname", "user"} & set(Record.model_fields)
