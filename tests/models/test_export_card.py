"""The model card: what is known is said, what is not is said to be unknown."""

import dataclasses

import yaml

from stexpr.models.export.card import model_card
from stexpr.panel import GenePanel, Preprocessing

PANEL = GenePanel(("ACTB", "MKI67"), ("AUX",), "highly_variable", "cohort", 0.1)
PREPROCESSING = Preprocessing(3.44, 112, 112, "macenko", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def test_the_card_names_what_the_model_comes_from():
    card = model_card(
        PANEL,
        PREPROCESSING,
        {
            "label": "resnet18 + aux",
            "cohort": "her2st",
            "cohort_hash": "abcd",
            "species": "human",
            "preservation": "FFPE",
            "citation": "Andersson | et al.\n2021",
            "protocol": {"name": "brstnet"},
            "training_patients": ["A", "B"],
            "pearson": 0.2345,
        },
    )
    for words in (
        "# resnet18 + aux",
        "2 genes",
        "112 px",
        "3.44 um/px",
        "her2st (abcd), patients A, B",
        "| species, tissue | human, unknown |",
        "FFPE",
        "| citation of the data | Andersson \\| et al. 2021 |",
        "| protocol | brstnet |",
        "0.234",
        "highly_variable, on the cohort spots",
        "macenko",
        "Not for diagnosis",
    ):
        assert words in card, words


def test_what_is_unknown_is_called_unknown():
    card = model_card(PANEL, dataclasses.replace(PREPROCESSING, stain="none"), {})
    assert "| license of the data | unknown |" in card
    assert "record.json" in card


def test_the_front_matter_is_yaml():
    _, front, _ = model_card(PANEL, PREPROCESSING, {}).split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "stexpr"
