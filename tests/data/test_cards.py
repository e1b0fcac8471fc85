import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.cards import HEADINGS, DataCard, list_cards, load_card, missing_headings
from stexpr.data.readers import READERS
from stexpr.errors import CardError

OWN = """\
---
name: mine
species: Homo sapiens
tissue: breast
technology: Visium
gene_namespace: ensembl
reader: h5ad
sections:
- {section: S1, patient: P1, counts: S1.h5ad, image: S1.tif}
---
"""


@pytest.fixture
def own(tmp_path):
    """A writer of changed copies of the smallest card."""

    def write(**changes):
        values = yaml.safe_load(OWN.strip("-\n")) | changes
        path = tmp_path / "mine.md"
        path.write_text(f"---\n{yaml.safe_dump(values)}---\n")
        return path

    return write


def entry(**changes):
    return [{"section": "S1", "patient": "P1", "counts": "c.h5ad", "image": "he.tif"} | changes]


def test_shipped_cards():
    cards = {card.name: card for card in list_cards()}
    assert list(cards) == ["her2st", "hest", "mob", "stnet", "synthetic"]
    for name, card in cards.items():
        assert missing_headings(card) == [], name
        assert card.title, name
        assert card.reader in {None, *READERS}
        listed = {file.path for file in card.files}
        for section in card.sections:
            assert {section.counts, section.spots, section.image} <= listed, (
                f"{name}: files of {section.section} are not listed"
            )
            assert section.mpp_source, f"{name}: {section.section} does not say how its mpp is known"
        for file in card.files:
            assert None not in (file.url, file.sha256, file.bytes), f"{name}: {file.path}"


def test_shipped_cohorts_have_the_settings_their_studies_expect():
    her2st, mob = load_card("her2st"), load_card("mob")
    assert (her2st.prepare.mpp, her2st.prepare.window_px, her2st.prepare.min_counts) == (3.44, 112, 500)
    assert (mob.prepare.mpp, mob.prepare.window_px, mob.prepare.min_counts) == (4.36, 256, 50)
    assert (her2st.patients, mob.patients) == (("A", "C"), ("mouse1", "mouse2"))
    assert (her2st.absent_genes, mob.library, mob.absent_genes) == ("zero", "subset", "refuse")
    assert her2st.sections[0].pixel_scale == 2000 / 6954
    assert (her2st.access, load_card("hest").access, load_card("synthetic").access) == ("license_bound", "gated", "generated")


def test_a_card_of_ones_own_needs_seven_fields(own):
    card = load_card(own())
    assert (card.access, card.license, card.absent_genes, card.patients) == ("open", "not stated", "refuse", ("P1",))
    assert missing_headings(card) == list(HEADINGS)
    values = yaml.safe_load(OWN.strip("-\n"))
    assert len(values) == 7
    for field in values:
        with pytest.raises(CardError, match=rf"mine\.md: '{field}' is missing"):
            load_card(_without(own(), field))


def _without(path, field):
    values = yaml.safe_load(path.read_text().strip("-\n"))
    del values[field]
    path.write_text(f"---\n{yaml.safe_dump(values)}---\n")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": "MIT"}, "unknown key 'licence'; did you mean 'license'"),
        ({"sections": entry(imgae="x")}, r"unknown key 'sections\.0\.imgae'; did you mean 'image'"),
        ({"sections": entry(patient=7)}, r"sections\.0\.patient = 7: put names that look like numbers into quotes: '7'"),
        ({"sections": entry(section="../S1")}, r"sections\.0\.section"),
        ({"sections": entry() + entry()}, "section 'S1' is listed more than once"),
        ({"sections": entry(mpp=-1)}, r"sections\.0\.mpp = -1"),
        ({"sections": entry(mpp=float("nan"))}, r"sections\.0\.mpp"),
        ({"sections": entry(blank=[[5, 0, 5, 9]])}, r"blank rectangle \[5, 0, 5, 9\]"),
        ({"sections": entry(blank_below=256)}, "blank_below = 256"),
        ({"gene_namespace": "hgnc"}, "gene_namespace = 'hgnc'"),
        ({"access": "gated"}, "needs access_note"),
        ({"n_patients": 0}, "n_patients = 0"),
        ({"n_sections": 1, "sections": entry() + entry(section="S2")}, "n_sections is 1, but the card lists 2"),
        ({"files": [{"path": "a", "sha256": "abc"}]}, r"files\.0\.sha256 = 'abc'"),
        ({"files": [{"path": "a"}, {"path": "a"}]}, "file 'a' is listed more than once"),
        ({"files": [{"path": "a", "url": "file:///etc/passwd"}]}, r"files\.0\.url"),
        ({"prepare": {"mpp": 0.5, "window": 3}}, r"unknown key 'prepare\.window'"),
    ],
)
def test_what_a_card_refuses(own, changes, message):
    with pytest.raises(CardError, match=message):
        load_card(own(**changes))


ESCAPES = ["../x", "/etc/passwd", "a/../../b", "C:\\x", "C:/x", "..", "\\\\host\\x", "a\\..\\b", ""]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_of_a_card_leaves_its_folder(own, path):
    for changes in (
        {"sections": entry(counts=path)},
        {"sections": entry(spots=path)},
        {"sections": entry(image=path)},
        {"files": [{"path": path}]},
        {"symbol_table": path},
    ):
        with pytest.raises(CardError, match="stays inside the cohort's folder"):
            load_card(own(**changes))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["a", "..", ".", "", "b c", "/", "\\", "C:", "~"]), max_size=5).map("/".join))
def test_every_accepted_path_stays_inside(text):
    values = yaml.safe_load(OWN.strip("-\n")) | {"files": [{"path": text}]}
    try:
        card = DataCard.model_validate(values)
    except ValueError:
        return
    from pathlib import Path

    folder = Path("/cohort")
    assert (folder / card.files[0].path).resolve().is_relative_to(folder)


def test_unknown_cards_suggest_the_nearest():
    with pytest.raises(CardError, match=r"no data card 'her2ts'.*did you mean 'her2st'"):
        load_card("her2ts")
    with pytest.raises(CardError, match=r"no data card 'x/mob\.md'"):
        load_card("x/mob.md")
    assert load_card("mob.md").name == "mob"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# no front matter", "does not open with YAML between two lines of ---"),
        ("---\nname: [\n---\n", "is not YAML"),
        ("---\n- a\n---\n", "holds list"),
    ],
)
def test_pages_that_are_no_cards(tmp_path, text, message):
    (tmp_path / "c.md").write_text(text)
    with pytest.raises(CardError, match=message):
        load_card(tmp_path / "c.md")


def test_a_card_that_is_not_text(tmp_path):
    (tmp_path / "c.md").write_bytes(b"---\n\xff\xfe\n---\n")
    with pytest.raises(CardError, match="cannot be read"):
        load_card(tmp_path / "c.md")
