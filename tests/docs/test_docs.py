"""The documentation as a reader gets it: no warning, tutorials that ran, nothing fetched, every public name."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import stexpr
import stexpr.pl
import stexpr.tl

pytest.importorskip("sphinx_gallery", reason="the documentation needs the extra `docs`")

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"
PICTURES = {"plot_1_olfactory_bulb": 3, "plot_2_visium": 3, "plot_3_whole_slide": 1}
"""Least number of pictures of each tutorial, also where the real data is absent."""
LOADED = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src", "object": "data", "video": "src"}
"""What a browser loads by itself, and where the address stands."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, built once even where two test processes share these tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "documentation"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "log").exists():
            done = build(folder)
            (folder / "log").write_text(f"{done.returncode}\n{done.stdout}{done.stderr}", encoding="utf-8")
    status, _, said = (folder / "log").read_text(encoding="utf-8").partition("\n")
    assert status == "0", said
    return folder / "site"


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a copy, since tutorials leave pages beside their scripts."""
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("__pycache__", "build", "gallery"))
    shutil.copytree(ROOT / "benchmarks" / "pictures", folder / "benchmarks" / "pictures")
    shutil.copy(ROOT / "README.md", folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))}
    environment |= {"STEXPR_DATA": str(REAL if REAL.is_dir() else folder / "raw"), "STEXPR_WORK": str(folder / "work")}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "site"],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
        timeout=840,
    )


class Addresses(HTMLParser):
    """Collects what a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED:
            self.found.append(values.get(LOADED[tag]) or "")
            self.found += [part.split()[0] for part in (values.get("srcset") or "").split(",") if part.strip()]


@pytest.mark.parametrize("tutorial", PICTURES)
def test_a_tutorial_ran_and_shows_its_pictures(site: Path, tutorial: str) -> None:
    page = (site / "gallery" / f"{tutorial}.html").read_text(encoding="utf-8")
    shown = set(re.findall(rf'src="\.\./_images/(sphx_glr_{tutorial}_\d+\.png)"', page))
    assert len(shown) >= PICTURES[tutorial]
    for name in shown:
        assert (site / "_images" / name).stat().st_size > 10_000, f"{name} is nearly empty"
    assert "Traceback" not in page
    assert len({(site / "_images" / name).read_bytes() for name in shown}) == len(shown), "a figure is drawn twice"


def test_the_bulb_is_real_where_it_is_at_hand_and_else_the_page_says_so(site: Path) -> None:
    page = (site / "gallery" / "plot_1_olfactory_bulb.html").read_text(encoding="utf-8")
    outputs = "".join(re.findall(r"sphx-glr-script-out.*?</div>", page, flags=re.DOTALL))
    assert ("SYNTHETIC" in outputs) == (not REAL.is_dir())
    assert "adjusted Rand index of predicted against measured" in outputs


def test_warnings_shown_on_purpose_are_there(site: Path) -> None:
    page = (site / "gallery" / "plot_2_visium.html").read_text(encoding="utf-8")
    for words in (
        "coarser than the 1.5 um/px",
        "species: the image is of Homo sapiens",
        "ScaleError: microns per pixel are unknown",
    ):
        assert words in page


def test_a_browser_loads_nothing_from_the_network(site: Path) -> None:
    pages = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    assert len(pages) > 15
    for path in pages:
        addresses = Addresses()
        addresses.feed(path.read_text(encoding="utf-8"))
        assert addresses.found, path
        remote = [address for address in addresses.found if re.match(r"(\w+:)?//", address)]
        assert not remote, f"{path.name} loads {remote}"
        lacking = [address for address in addresses.found if not _there(path, address)]
        assert not lacking, f"{path.name} misses {lacking}"
    for path in site.rglob("*.css"):
        remote = re.findall(r"(?:@import\s+|url\()[\"']?(?:\w+:)?//[^)\"']+", path.read_text(encoding="utf-8"))
        assert not remote, f"{path.name} loads {remote}"


def _there(page: Path, address: str) -> bool:
    name = re.split(r"[?#]", address)[0]
    return not name or name.startswith("data:") or (page.parent / name).exists()


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    anchors = set()
    for path in (site / "reference").glob("*.html"):
        anchors |= set(re.findall(r'id="([\w.]+)"', path.read_text(encoding="utf-8")))
    public = [f"stexpr.{name}" for name in stexpr.__all__ if name not in ("pl", "tl")]
    for module in (stexpr.tl, stexpr.pl, stexpr.tl.lazyslide):
        public += [f"{module.__name__}.{name}" for name in module.__all__ if name != "lazyslide"]
    missing = [name for name in public if name not in anchors and name.replace("stexpr.", "stexpr.errors.", 1) not in anchors]
    assert not missing


def test_the_reference_shows_real_signatures_and_every_verb(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "reference" / "stexpr.html").read_text(encoding="utf-8"))
    assert re.search(r"load_model\(\s*source", page)
    verbs = re.sub(r"<[^>]+>", "", (site / "reference" / "command_line.html").read_text(encoding="utf-8"))
    for verb in ("stexpr train", "stexpr export", "stexpr predict", "stexpr sweep status", "--abstain"):
        assert verb in verbs


def test_parts_of_the_readme_are_found_by_their_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "extensions"))
    import readme

    parts = readme.sections("# A\n\nfirst\n\n## B\n\n```console\n## no heading\n```\n\n### C\n\nlast\n\n## D\nend")
    assert parts == {"A": "first", "B": "```console\n## no heading\n```\n\n### C\n\nlast", "D": "end"}
