"""The encoder alone: the model's features, with gradients, and one network of an ensemble when one is chosen."""

import pytest
import torch

import stexpr
from exported_models import everything_beside, save, save_three
from stexpr.errors import ModelError
from stexpr.models.export import load_model
from stexpr.models.export.encoder import Encoder, load_encoder


def test_features_are_those_of_the_model(tmp_path, make_model, make_batch):
    model = make_model(backbone="mobilenetv3_small_050").eval()
    save(tmp_path, model)
    encoder = stexpr.load_encoder(tmp_path)
    patches = make_batch(3).patches
    with torch.inference_mode():
        assert encoder(patches).equal(model.features(patches))
    assert isinstance(encoder, torch.nn.Module)
    assert not encoder.training
    assert encoder.n_features == 1024
    assert encoder.preprocessing == load_model(tmp_path).preprocessing
    assert encoder.hash == load_model(tmp_path).hash
    assert all(name.startswith("backbone.") for name in encoder.state_dict())


def test_it_can_be_trained_further_in_plain_torch(tmp_path, make_model, make_batch):
    save(tmp_path, make_model())
    head = torch.nn.Sequential(load_encoder(tmp_path), torch.nn.Linear(192, 1)).train()
    head(make_batch(3).patches).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_patches_of_another_size_are_refused(tmp_path, make_model, make_batch):
    save(tmp_path, make_model())
    with pytest.raises(ModelError, match="built for patches of 32 px"):
        load_encoder(tmp_path)(make_batch(2, window_px=48).patches)


def test_of_an_ensemble_one_is_chosen(tmp_path, make_model, make_batch):
    folder = save_three(tmp_path, make_model)
    with pytest.raises(ModelError, match=r"ensemble of 3 networks, .* member=0 to 2"):
        load_encoder(folder)
    patches = make_batch(3).patches
    with torch.inference_mode():
        features = [load_encoder(folder, member=i)(patches) for i in range(3)]
    assert torch.cat(features, dim=1).equal(load_model(folder)(patches, symmetries=False).features)
    assert load_encoder(folder, member=1).hash == load_model(tmp_path / "run1").hash


def test_a_member_that_is_not_there_is_named(tmp_path, make_model):
    save(tmp_path, make_model())
    assert isinstance(load_encoder(tmp_path, member=0), Encoder)
    for absent in (1, -1):
        with pytest.raises(ModelError, match=f"no network {absent}; member is between 0 and 0"):
            load_encoder(tmp_path, member=absent)


def test_a_model_saves_itself_with_all_its_files(tmp_path, make_model, make_batch):
    model = make_model(loss="negative_binomial")
    save(tmp_path / "one", model, **everything_beside(model))
    patches = make_batch(3).patches
    for folder in (tmp_path / "one", save_three(tmp_path, make_model)):
        loaded = load_model(folder)
        loaded.save(tmp_path / "again" / folder.name)
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        copies = tmp_path / "again" / folder.name
        assert {path.relative_to(copies): path.read_bytes() for path in copies.rglob("*") if path.is_file()} == files
        again = load_model(copies)
        assert again.hash == loaded.hash
        for ours, theirs in zip(again(patches), loaded(patches), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
