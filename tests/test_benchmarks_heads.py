"""What benchmarks/results/slide-heads.json says of the planted targets, as benchmarks/slide_heads.sh measured it."""

import json
from pathlib import Path

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "slide-heads.json"
OWN = "gated_attention on trained features"


def test_heads_find_what_is_planted_and_nothing_else() -> None:
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    heads = {task: rows[OWN]["value"] for task, rows in found["heads"].items()}
    assert heads["mutation"] > 0.9
    assert heads["ki67"] > 0.8
    assert heads["survival"] > found["true_hazard_c"] - 0.03
    assert not any(found["unplanted"][name]["significant"] for name in ("NULL1_mut", "NULL2_mut"))
    assert found["attention_finds_planted_patches"]["mean"] > 0.9


def test_the_trained_encoder_beats_the_untrained_one_and_colors_on_the_planted_mutation() -> None:
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    tests = [test for test in found["paired"]["mutation"] if test["target"] == "PLANTED_mut" and test["a"] == OWN]
    against = {test["b"]: test for test in tests}
    for other in ("gated_attention on untrained features", "gated_attention on trained color"):
        assert against[other]["difference"] > 0
        assert against[other]["p"] < 0.05
