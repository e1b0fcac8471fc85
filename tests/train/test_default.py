"""What a cohort is trained with where nobody says otherwise."""

from pathlib import Path

import pytest

from stexpr.config import load_study
from stexpr.data.store import PreparedCohort
from stexpr.errors import ConfigError
from stexpr.train.default import default_study, is_prepared


def test_a_cohort_is_trained_as_the_best_study_is(small_cohort: Path, tmp_path: Path):
    assert is_prepared(small_cohort)
    assert not is_prepared(tmp_path)
    own, best = default_study(small_cohort), load_study("best_mob")
    window = PreparedCohort.open(small_cohort).window_px
    assert (own.cohort, own.name) == (small_cohort, small_cohort.name)
    assert own.input.fields_px == ((56, window) if window > 56 else None)
    assert own.input.colors == best.input.colors == "standardized"
    assert (own.model, own.training, own.protocol) == (best.model, best.training, best.protocol)
    assert default_study(small_cohort).input.colors == "standardized"
    changed = default_study(small_cohort, ["training.epochs=3", "input.fields_px=null"])
    assert (changed.training.epochs, changed.input.fields_px) == (3, None)
    with pytest.raises(ConfigError, match="epochs"):
        default_study(small_cohort, ["training.epochz=3"])
