"""Models on the hub: a loopback server takes and gives them; nothing is asked of it unless that was allowed."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import stexpr
from exported_models import everything_beside, save, save_three
from hub_server import TOKEN, HubServer
from stexpr.errors import ModelError
from stexpr.models.export import LoadedModel, load_model

NAME = "somebody/mob"

# huggingface_hub uploads large files with an argument of httpx that is on its way out
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub of this test, and a cache of its own; who asks is known to it."""
    with HubServer().running() as server:
        cache = tmp_path / "cache"
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(tmp_path / "absent"),
            "HF_HUB_DISABLE_XET": True,
        }.items():
            assert hasattr(constants, name)
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def model(tmp_path: Path, make_model) -> LoadedModel:
    network = make_model()
    save(tmp_path / "model", network, **everything_beside(network))
    return load_model(tmp_path / "model")


def test_what_was_pushed_comes_back(hub, model, make_batch):
    address = model.push_to_hub(NAME)
    assert address.startswith(f"{hub.url}/{NAME}/commit/")
    assert hub.repositories[NAME].private
    names = {"README.md", "config.json", "genes.csv", "intervals.csv", "model.safetensors", "reference.safetensors"}
    assert set(hub.files(NAME)) == names
    assert any(request.startswith("PUT /objects/") for request in hub.requests)
    again = LoadedModel.from_pretrained(NAME)
    assert again.hash == model.hash
    patches = make_batch(3).patches
    for ours, theirs in zip(again(patches), model(patches), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_an_ensemble_comes_back_and_a_single_model_takes_its_place(hub, model, tmp_path, make_model):
    three = load_model(save_three(tmp_path, make_model))
    three.push_to_hub(NAME)
    assert LoadedModel.from_pretrained(NAME).hash == three.hash
    hub.files(NAME)["notes.txt"] = b"of the owner"
    model.push_to_hub(NAME)
    assert not any(name.startswith("members/") for name in hub.files(NAME))
    assert hub.files(NAME)["notes.txt"] == b"of the owner"
    assert LoadedModel.from_pretrained(NAME).hash == model.hash


def test_nothing_is_asked_of_the_hub_unless_that_is_allowed(hub, model):
    model.push_to_hub(NAME)
    hub.requests.clear()
    with pytest.raises(
        ModelError, match=r"no folder somebody/mob, and no model .* load_model\('somebody/mob', download=True\)"
    ):
        stexpr.load_model(NAME)
    with pytest.raises(ModelError, match="download=True"):
        stexpr.load_encoder(NAME)
    assert hub.requests == []
    assert stexpr.load_model(NAME, download=True).hash == model.hash
    hub.requests.clear()
    assert stexpr.load_model(NAME).hash == model.hash
    assert stexpr.load_encoder(NAME).n_features == model.n_features
    assert hub.requests == []


def test_a_folder_comes_before_a_repository_of_its_name(hub, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save(NAME)
    assert stexpr.load_model(NAME, download=True).hash == LoadedModel.from_pretrained(NAME).hash == model.hash
    with pytest.raises(ModelError, match="is a folder and has no revision 'v1'"):
        stexpr.load_model(NAME, revision="v1")
    assert hub.requests == []


def test_a_path_is_never_a_repository(hub):
    with pytest.raises(ModelError, match="no exported model"):
        stexpr.load_model(Path(NAME), download=True)
    with pytest.raises(ModelError, match="no exported model"):
        stexpr.load_model(f"./{NAME}", download=True)
    assert hub.requests == []


def test_an_earlier_revision_can_be_had(hub, model, tmp_path, make_model):
    first = model.push_to_hub(NAME).rsplit("/", 1)[1]
    save(tmp_path / "other", make_model(seed=1))
    load_model(tmp_path / "other").push_to_hub(NAME)
    assert stexpr.load_model(NAME, revision=first, download=True).hash == model.hash
    assert LoadedModel.from_pretrained(NAME).hash == load_model(tmp_path / "other").hash
    with pytest.raises(ModelError, match="cannot fetch somebody/mob: there is no such repository or revision"):
        stexpr.load_model(NAME, revision="v9", download=True)


def test_only_files_of_the_format_are_fetched(hub, model, tmp_path):
    model.push_to_hub(NAME)
    foreign = ("pytorch_model.bin", "members/0/run.py", "members/x/config.json", "handler.py")
    hub.files(NAME).update(dict.fromkeys(foreign, b"import os"))
    LoadedModel.from_pretrained(NAME)
    (snapshot,) = (tmp_path / "cache").rglob("snapshots/*")
    fetched = {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()}
    assert fetched == set(hub.files(NAME)) - set(foreign)


@pytest.mark.parametrize("name", ["model.safetensors", "genes.csv", "intervals.csv", "reference.safetensors", "config.json"])
def test_a_file_changed_on_the_hub_is_refused(hub, model, name):
    model.push_to_hub(NAME)
    content = hub.files(NAME)[name]
    hub.files(NAME)[name] = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    with pytest.raises(ModelError, match=name):
        LoadedModel.from_pretrained(NAME)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "cannot push to somebody/mob: .* log in .`hf auth login`"),
        (403, "cannot push to somebody/mob: this account may not"),
        (404, "cannot push to somebody/mob: there is no such repository"),
        (418, "cannot push to somebody/mob: it answered 418"),
    ],
)
def test_a_refused_push_is_said_in_one_line(hub, model, status, words):
    hub.refusal = status
    with pytest.raises(ModelError, match=words) as caught:
        model.push_to_hub(NAME)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("where", ["/preupload/", "/info/lfs/", "/commit/"])
def test_a_push_refused_on_its_way_leaves_the_earlier_model(hub, model, tmp_path, make_model, where):
    model.push_to_hub(NAME)
    save(tmp_path / "other", make_model(seed=1))
    hub.refused = where
    with pytest.raises(ModelError, match="this account may not"):
        load_model(tmp_path / "other").push_to_hub(NAME)
    hub.refused = None
    assert LoadedModel.from_pretrained(NAME).hash == model.hash


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_download_is_said_in_one_line(hub, model, status):
    model.push_to_hub(NAME)
    hub.refusal = status
    for load in (LoadedModel.from_pretrained, lambda name: stexpr.load_model(name, download=True)):
        with pytest.raises(ModelError, match="cannot fetch somebody/mob: ") as caught:
            load(NAME)
        assert "\n" not in str(caught.value)


def test_a_private_model_needs_a_token(hub, model, monkeypatch):
    model.push_to_hub(NAME)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelError, match="log in"):
        LoadedModel.from_pretrained(NAME)
    assert LoadedModel.from_pretrained(NAME, token=TOKEN).hash == model.hash


def test_a_server_that_is_not_there_is_said(hub, model, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="cannot push to somebody/mob"):
        model.push_to_hub(NAME)


@pytest.mark.parametrize("token", ["", f"{TOKEN}\n", f"Bearer {TOKEN}"])
def test_what_cannot_be_a_token_is_not_repeated(hub, model, token):
    with pytest.raises(ModelError, match="holds a blank or line break") as caught:
        model.push_to_hub(NAME, token=token)
    assert TOKEN not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["no spaces allowed/x", "a/b/c", "-bad-/name"])
def test_a_name_that_cannot_be_a_repository_is_said(hub, model, name):
    with pytest.raises(ModelError, match="cannot push to"):
        model.push_to_hub(name)


def test_the_mixins_own_name_saves_the_same_files(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    assert LoadedModel.from_pretrained(tmp_path / "saved").hash == model.hash
    with pytest.raises(ModelError, match="has no push_to_hub"):
        model.save_pretrained(tmp_path / "saved", push_to_hub=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architectures": ["Bert"]}')
    with pytest.raises(ModelError, match="of another library"):
        model.save_pretrained(tmp_path / "other")
    assert json.loads((tmp_path / "other" / "config.json").read_text()) == {"architectures": ["Bert"]}


def test_the_token_is_written_nowhere(hub, model, tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        model.push_to_hub(NAME, token=TOKEN)
        LoadedModel.from_pretrained(NAME, token=TOKEN)
        hub.refusal = 403
        with pytest.raises(ModelError):
            model.push_to_hub(NAME, token=TOKEN)
    said = "".join([caplog.text, *capfd.readouterr()])
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert TOKEN not in said
    assert TOKEN.encode() not in written + b"".join(hub.files(NAME).values())


FRESH = """
import sys, torch, stexpr
from safetensors.torch import load_file
given = load_file(sys.argv[1])
model = stexpr.load_model("somebody/mob", download=True)
print(model(given["patches"]).expression.equal(given["expression"]))
"""


def test_a_fresh_process_finds_it_by_the_environment(hub, model, tmp_path, make_batch):
    from safetensors.torch import save_file

    model.push_to_hub(NAME)
    patches = make_batch(3).patches.contiguous()
    save_file({"patches": patches, "expression": model(patches).expression}, tmp_path / "given.safetensors")
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "given.safetensors")],
        env={**os.environ, **own, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"
