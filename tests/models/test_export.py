"""Exported models: the same predictions after a way through the disk, and a clear word for whatever was tampered with."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exported_models import PANEL, PROVENANCE, preprocessing_of, save
from stexpr.errors import DataError, ModelError
from stexpr.models.export import CARD, CONFIG, GENES, WEIGHTS, load_model
from stexpr.panel import ExpressionTransform, GenePanel


@pytest.fixture
def saved(tmp_path: Path, make_model: Callable[..., Any]) -> Path:
    save(tmp_path / "model", make_model())
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change config.json, as somebody would who knows how it is checked."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def reseal(folder: Path, name: str) -> None:
    """Make the checksum of a changed file right again."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    rewrite(folder, lambda config: config["sha256"].update({name: digest}))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"loss": "mse_pearson", "weight": 0.5, "standardize": False},
        {"loss": "negative_binomial"},
        {"backbone": "efficientnet_b0"},  # running statistics and a learned head of its own
        {"backbone": "inception_v3"},  # enlarged input
        {"backbone": "mobilenetv3_small_050"},  # for modest hardware
        {"backbone": "lcnet_050"},
    ],
    ids=str,
)
@pytest.mark.parametrize("auxiliary", [True, False])
def test_a_loaded_model_predicts_the_same_bits(tmp_path, make_model, make_batch, config, auxiliary):
    model = make_model(**config, auxiliary=auxiliary)
    optimizer = torch.optim.SGD(model.parameter_groups(0.0), lr=1e-3)
    model.loss(make_batch(4)).total.backward()
    optimizer.step()
    save(tmp_path, model)
    loaded = load_model(tmp_path)
    patches = make_batch(4, seed=1).patches
    model.eval()
    with torch.inference_mode():
        assert loaded.model.predict(patches, symmetries=True).equal(model.predict(patches, symmetries=True))
        assert loaded.model.features(patches).equal(model.features(patches))
        if auxiliary:
            assert loaded.model(patches).auxiliary.equal(model(patches).auxiliary)
    assert not loaded.model.training
    assert loaded.model.auxiliary_weight == model.auxiliary_weight
    batch = make_batch(4, seed=2)
    assert loaded.model.loss(batch).total.equal(model.loss(batch).total)


def test_everything_beside_the_weights_returns(saved, make_model):
    loaded = load_model(str(saved))
    assert loaded.panel == PANEL
    assert loaded.panel.hash == PANEL.hash
    assert loaded.transform == ExpressionTransform()
    assert loaded.preprocessing == preprocessing_of(make_model())
    assert loaded.provenance == PROVENANCE


def test_another_unit_of_expression_returns(tmp_path, make_model):
    transform = ExpressionTransform("stnet", n_genes=1000)
    save(tmp_path, make_model(), transform=transform)
    assert load_model(tmp_path).transform == transform


def test_the_folder_holds_four_files_and_nothing_pickled(saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted([CARD, CONFIG, GENES, WEIGHTS])
    assert load_file(saved / WEIGHTS).keys() >= {"main_head.weight", "main_objective.mean", "main_objective.sd"}
    assert not any(content.startswith((b"PK", b"\x80")) for content in (path.read_bytes() for path in saved.iterdir()))


def test_loading_leaves_the_random_state_alone(saved):
    before = torch.get_rng_state()
    load_model(saved)
    assert torch.get_rng_state().equal(before)


FRESH = """
import sys, torch
from stexpr.models.export import load_model
patches, expected = torch.load(sys.argv[2], weights_only=True)
with torch.inference_mode():
    print(load_model(sys.argv[1]).model.predict(patches, symmetries=True).equal(expected))
"""


def test_a_fresh_process_predicts_the_same_bits(tmp_path, make_model, make_batch):
    model = make_model(backbone="mobilenetv3_small_050").eval()
    save(tmp_path / "model", model)
    patches = make_batch(4).patches
    with torch.inference_mode():
        torch.save((patches, model.predict(patches, symmetries=True)), tmp_path / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "model"), str(tmp_path / "expected.pt")],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "True"


def test_weights_from_a_folder_are_exported_whole(tmp_path, make_model, make_batch):
    import timm

    network = timm.create_model("test_resnet", num_classes=0, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    timm.models.save_for_hf(network, tmp_path / "timm", safe_serialization=True)
    model = make_model(backbone=f"local-dir:{tmp_path / 'timm'}", pretrained=True, auxiliary=False).eval()
    save(tmp_path / "model", model)
    (tmp_path / "timm").rename(tmp_path / "moved")
    loaded = load_model(tmp_path / "model").model
    patches = make_batch(2).patches
    with torch.inference_mode():
        assert loaded.predict(patches).equal(model.predict(patches))
    assert loaded.backbone.mean == (0.1, 0.2, 0.3)
    assert str(tmp_path) not in (tmp_path / "model" / CONFIG).read_text()


def test_an_architecture_with_arguments_of_its_own_is_exported_with_them(tmp_path, make_model, make_batch):
    import timm

    own = {"depth": 2, "embed_dim": 48, "num_heads": 3, "init_values": 1e-5, "reg_tokens": 2, "dynamic_img_size": True}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, global_pool="avg", **own)
    timm.models.save_for_hf(network, tmp_path / "timm", safe_serialization=True, model_args={**own, "img_size": 64})
    model = make_model(backbone=f"local-dir:{tmp_path / 'timm'}", pretrained=True, auxiliary=False).eval()
    assert model.backbone.input_px == 32  # its position embeddings stretch, so patches need no enlarging
    save(tmp_path / "model", model)
    (tmp_path / "timm").rename(tmp_path / "moved")
    arguments = json.loads((tmp_path / "model" / CONFIG).read_text())["backbone_arguments"]
    assert own.items() <= arguments.items()
    patches = make_batch(2).patches
    with torch.inference_mode():
        assert load_model(tmp_path / "model").model.predict(patches).equal(model.predict(patches))


def test_a_model_of_before_arguments_were_kept_is_still_read(tmp_path, make_model, make_batch):
    model = make_model(backbone="vit_tiny_patch16_224", auxiliary=False).eval()
    save(tmp_path, model)
    rewrite(tmp_path, lambda config: config.pop("backbone_arguments"))
    patches = make_batch(2).patches
    with torch.inference_mode():
        assert load_model(tmp_path).model.predict(patches).equal(model.predict(patches))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, GENES])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_model(saved)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match="absent is no exported model"):
        load_model(tmp_path / "absent")


@pytest.mark.parametrize("name", [WEIGHTS, GENES])
@pytest.mark.parametrize("change", [lambda data: data[:-7], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""])
def test_changed_bytes_are_refused(saved, name, change):
    (saved / name).write_bytes(change((saved / name).read_bytes()))
    with pytest.raises(ModelError, match=f"{name} is not the file config.json was written with"):
        load_model(saved)


def test_a_truncated_file_is_refused_even_with_its_checksum(saved):
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-7])
    reseal(saved, WEIGHTS)
    with pytest.raises(ModelError, match="does not fit"):
        load_model(saved)


def test_weights_of_another_network_are_refused_in_one_line(saved):
    save_file({"main_head.weight": torch.zeros(3, 3)}, saved / WEIGHTS)
    reseal(saved, WEIGHTS)
    with pytest.raises(ModelError, match="does not fit") as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("\xff\xfe", "is not JSON|was not written by stexpr"),
        ("[]", "was not written by stexpr"),
        ('{"architecture": "resnet18", "num_classes": 0}', "was not written by stexpr"),  # timm's own
        ('{"format": 4, "sha256": {}}', "has format 4, this stexpr reads up to 3"),
        ('{"format": 1, "sha256": {}}', "transform has the keys kind"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(saved, text, message):
    (saved / CONFIG).write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=message):
        load_model(saved)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("backbone",), "local-dir:/etc"),
        (("backbone",), "hf-hub:somebody/something"),
        (("backbone",), "../../etc"),
        (("backbone",), "no_such_network"),
        (("backbone",), "resnet18"),
        (("backbone_arguments",), {"depth": 2}),  # the tiny network has none
        (("backbone_arguments",), {"checkpoint_path": "weights.pth"}),
        (("backbone_arguments",), {"norm_layer": "/etc/passwd"}),
        (("backbone_arguments",), {"depth": 10**6}),
        (("backbone_arguments",), {"patch_size": {"16": 16}}),
        (("auxiliary_weight",), -1),
        (("objectives", "main", "kind"), "pickle"),
        (("objectives",), {}),
        (("objectives", "secondary"), {"kind": "mse"}),
        (("transform", "kind"), "exp"),
        (("transform", "kind"), "stnet"),  # which needs the number of genes
        (("transform", "target_sum"), "much"),
        (("preprocessing", "window_px"), 0),
        (("preprocessing", "window_px"), 10**6),
        (("preprocessing", "window_px"), "wide"),
        (("preprocessing", "input_px"), 999),
        (("preprocessing", "input_px"), 10**6),
        (("preprocessing", "mean"), [1, 2]),
        (("panel", "rule"), "oracle"),
        (("sha256", "genes.csv"), "../genes.csv"),
        (("sha256",), {"model.safetensors": "0" * 64}),
        (("surprise",), 1),
    ],
    ids=str,
)
def test_a_config_that_asks_for_something_else_is_refused(saved, path, value):
    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    rewrite(saved, change)
    with pytest.raises(ModelError) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


KEYS = ("backbone", "auxiliary_weight", "objectives", "transform", "preprocessing", "panel", "provenance", "sha256")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ["absent", None, "?", -3, [], {}, [1, 2]], ids=str)
def test_an_entry_of_another_kind_is_refused(saved, key, value):
    if (key, value) == ("provenance", {}):
        return  # nothing is known of where it comes from, which is allowed
    rewrite(saved, lambda config: config.pop(key) if value == "absent" else config.update({key: value}))
    with pytest.raises(ModelError) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_weights_that_are_missing_or_too_many_are_named(saved, change):
    tensors = load_file(saved / WEIGHTS)
    mean = tensors.pop("main_objective.mean")
    if change == "surplus":
        tensors |= {"main_objective.mean": mean, "surplus": mean.clone()}
    elif change == "shape":
        tensors["main_objective.mean"] = mean[:2].clone()
    save_file(tensors, saved / WEIGHTS)
    reseal(saved, WEIGHTS)
    with pytest.raises(ModelError, match=r"surplus|main_objective\.mean"):
        load_model(saved)


def test_a_pickle_is_not_opened_even_with_its_checksum(saved, make_model):
    torch.save(make_model().state_dict(), saved / WEIGHTS)
    reseal(saved, WEIGHTS)
    with pytest.raises(ModelError, match="does not fit"):
        load_model(saved)


def test_a_gene_taken_away_does_not_fit_the_weights(saved):
    lines = (saved / GENES).read_text().splitlines(keepends=True)
    (saved / GENES).write_text("".join(lines[:1] + lines[2:]))
    reseal(saved, GENES)
    with pytest.raises(ModelError, match="does not fit"):
        load_model(saved)


def test_names_beside_the_checksums_are_never_opened(saved):
    secret = saved.parent / "secret"
    secret.write_text("left alone")
    digest = hashlib.sha256(b"left alone").hexdigest()
    rewrite(saved, lambda config: config["sha256"].update({"../secret": digest, "/nowhere": digest}))
    assert load_model(saved).panel == PANEL
    rewrite(saved, lambda config: config["sha256"].pop(WEIGHTS))
    with pytest.raises(ModelError, match="is not the file"):
        load_model(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gene,role\nACTB,main\n",
        "gene,role,detection\nACTB,third,\n",
        "gene,role,detection\nACTB\n",
        "a,b,c\n\xff",
        'gene,role,detection\n"A,main,\n',
    ],
)
def test_a_gene_table_of_another_shape_is_refused(saved, text):
    (saved / GENES).write_bytes(text.encode("latin-1"))
    reseal(saved, GENES)
    with pytest.raises(ModelError, match="not a table of genes"):
        load_model(saved)


def test_a_panel_that_is_not_the_models_is_refused(tmp_path, make_model):
    other = GenePanel.from_dict({**PANEL.to_dict(), "main": PANEL.main[:-1]})
    with pytest.raises(ModelError, match="panel has 4 main and 9 auxiliary genes, the model 5 and 9"):
        save(tmp_path / "model", make_model(), panel=other)
    assert not (tmp_path / "model").exists()


def test_a_later_model_replaces_an_earlier_one(saved, make_model, make_batch):
    later = make_model(seed=7).eval()
    save(saved, later)
    patches = make_batch(2).patches
    with torch.inference_mode():
        assert load_model(saved).model.predict(patches).equal(later.predict(patches))


@pytest.mark.parametrize("text", ['{"architectures": ["Bert"]}', "{}", "not JSON", "3"])
def test_a_folder_of_another_library_is_left_alone(tmp_path, make_model, text):
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(ModelError, match="of another library"):
        save(tmp_path, make_model())
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG]
    assert (tmp_path / CONFIG).read_text() == text


def test_what_cannot_be_written_is_said_and_leaves_the_earlier_model_whole(saved, make_model):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    (saved / f".{CARD}.part").mkdir()  # where a file has to be written first
    with pytest.raises(DataError, match="cannot write into"):
        save(saved, make_model(seed=7))
    (saved / f".{CARD}.part").rmdir()
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    load_model(saved)


def test_a_file_where_the_folder_should_be_is_said(tmp_path, make_model):
    (tmp_path / "model").write_text("")
    with pytest.raises(DataError, match="cannot write into"):
        save(tmp_path / "model", make_model())


@pytest.fixture
def low_rank(tmp_path, make_model):
    model = make_model(rank=2, components=torch.tensor([[1.0, 0.5, 0.0, 0.2, -0.3], [0.0, 1.0, -2.0, 0.1, 0.0]]))
    save(tmp_path / "low_rank", model.eval())
    return model, tmp_path / "low_rank"


def test_a_low_rank_head_returns(low_rank, saved, make_batch):
    model, folder = low_rank
    loaded, patches = load_model(folder), make_batch(4).patches
    assert loaded.model.predict(patches).equal(model.predict(patches))
    features = loaded.model.features(patches)
    assert loaded.expression_of(features).allclose(model.predict(patches), atol=1e-6)
    assert "rank" not in json.loads((saved / CONFIG).read_text())


@pytest.mark.parametrize(("rank", "reason"), [(3, "size mismatch"), (6, "rank = 6 is more than the 5 main genes"), (0, "rank")])
def test_a_rank_that_does_not_fit_is_refused(low_rank, rank, reason):
    rewrite(low_rank[1], lambda config: config.update(rank=rank))
    with pytest.raises(ModelError, match=reason):
        load_model(low_rank[1])


def test_a_folder_of_format_1_is_still_read(saved, make_batch):
    patches = make_batch(4).patches
    before = load_model(saved).model.predict(patches)

    def age(config: dict[str, Any]) -> None:
        config["format"] = 1
        for key in ("release", "intervals", "backbone_arguments"):
            del config[key]

    rewrite(saved, age)
    loaded = load_model(saved)
    assert loaded.model.predict(patches).equal(before)
    assert loaded.intervals is None
    assert not loaded.has_reference
    assert loaded(patches).novelty.isnan().all()
