"""`stexpr slides`, run as a person runs it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from slides import slide_pixels, write_slide, write_slide_model
from stexpr.data.bag_store import BagStore

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide_model(tmp_path_factory.mktemp("model"))


def test_from_slides_to_bags(stexpr: Run, model: Path):
    Path("slides").mkdir()
    write_slide(Path("slides/a.tif"), slide_pixels(200, 300))
    write_slide(Path("slides/b.tif"), slide_pixels(200, 300, seed=1))
    Path("slides/broken.svs").write_text("no slide")
    asked = ("slides", "embed", "slides", "-m", model, "-o", "bags", "--expression", "--device", "cpu", "--workers", "1")
    code, out, err = stexpr(*asked)
    assert (code, err) == (1, "")
    assert "[3/3] broken: QUARANTINED: " in out
    assert "2 bags made now, 0 before, in bags; bags/slides.csv lists them" in out
    Path("slides/broken.svs").unlink()
    code, out, err = stexpr(*asked)
    assert (code, err) == (0, "")
    assert "0 bags made now, 2 before" in out
    store = BagStore.open("bags")
    assert (list(store.bags), len(store.genes)) == (["a", "b"], 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "-m", "MODEL"], "nowhere is neither a folder of slides nor a slide table"),
        (["slides", "-m", "nowhere"], "published encoders are uni"),
        (["slides", "-m", "MODEL", "--min-tissue", "3"], "it lies between 0 and 1"),
        (["slides", "-m", "MODEL", "--engine", "locall"], "no engine 'locall'"),
        (["slides", "-m", "MODEL", "--slurm", "x"], "is not of the form key=value"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(stexpr: Run, model: Path, arguments: list[str], message: str):
    Path("slides").mkdir()
    write_slide(Path("slides/a.tif"), slide_pixels(200, 300))
    code, _, err = stexpr("slides", "embed", *(str(model) if one == "MODEL" else one for one in arguments))
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not list(Path("bags").glob("*.h5"))
