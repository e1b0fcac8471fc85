"""The model card: what is known is said, what is not is said to be unknown."""

import dataclasses

import pytest
import yaml

from stexpr.models.export.card import model_card
from stexpr.models.export.loaded import LoadedModel, LoadedNetwork, Release
from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing

PANEL = GenePanel(("ACTB", "MKI67"), ("AUX",), "highly_variable", "cohort", 0.1)
PREPROCESSING = Preprocessing(3.44, 112, 112, "macenko", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture
def model(make_model):
    network = LoadedNetwork(make_model(), PANEL, {})
    return LoadedModel((network,), ExpressionTransform(), PREPROCESSING)


def about(model: LoadedModel, **provenance) -> LoadedModel:
    return dataclasses.replace(model, networks=(dataclasses.replace(model.networks[0], provenance=provenance),))


def test_the_card_names_what_the_model_comes_from(model):
    described = about(
        model,
        label="resnet18 + aux",
        cohort="her2st",
        cohort_hash="abcd",
        species="human",
        preservation="FFPE",
        citation="Andersson | et al.\n2021",
        protocol={"name": "brstnet"},
        training_patients=["A", "B"],
    )
    scores = {
        **{"pearson": 0.2345, "low": 0.2, "high": 0.3, "interval": "95 % over patients", "ceiling": 0.5},
        **{"r_over_ceiling": 0.47, "n_seeds": 2, "n_genes": 2, "n_spots": 1234, "n_sections": 3, "test_patients": ["C"]},
    }
    card = model_card(dataclasses.replace(described, release=Release(scores=scores, notes=("odd\nscanner",))))
    for words in (
        "# resnet18 + aux",
        "2 genes",
        "112 px",
        "3.44 um/px",
        "her2st (abcd), patients A, B",
        "| held out | C |",
        "| species, tissue | human, unknown |",
        "FFPE",
        "| citation of the data | Andersson \\| et al. 2021 |",
        "| protocol | brstnet |",
        "0.234 (0.200 to 0.300, 95 % over patients); 2 genes, 1,234 spots, 3 sections, mean of 2 seeds",
        "0.500; r / ceiling 0.47",
        "highly_variable, on the cohort spots",
        "macenko",
        "- odd scanner",
        "Not for diagnosis",
    ):
        assert words in card, words


def test_what_is_unknown_is_called_unknown(model):
    card = model_card(model)
    assert "| license of the data | unknown |" in card
    assert "record.json" in card
    assert "| foreign tissue | not told |" in card


def test_the_front_matter_is_yaml(model):
    _, front, _ = model_card(model).split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "stexpr"
