"""A wheel built from the tree carries its configs and data cards, works away from the tree, and holds no real data."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, so that neither the tree nor what earlier builds left in it plays a part."""
    source, target = tmp_path_factory.mktemp("source") / "stexpr", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("stexpr", "configs", "data_cards"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
        str(wheel),
    ]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    return folder


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(installed), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_every_file_of_the_package_is_inside_and_nothing_else(wheel: Path) -> None:
    expected = {
        *(f"stexpr/{path.relative_to(ROOT / 'stexpr')}" for path in (ROOT / "stexpr").rglob("*.py")),
        *(f"stexpr/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")),
        *(f"stexpr/data_cards/{path.name}" for path in (ROOT / "data_cards").glob("*.md")),
        *(f"stexpr/evaluate/page/{name}" for name in ("page.html", "page.css", "page.js", "theme.js", "maps.js")),
        "stexpr/py.typed",
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert names == expected


def test_no_real_data_is_inside(wheel: Path, shared_data: Path) -> None:
    theirs = {path.name for path in shared_data.rglob("*") if path.is_file() and path.name != "README.md"}
    with zipfile.ZipFile(wheel) as archive:
        assert not {Path(name).name for name in archive.namelist()} & theirs
        assert sum(info.file_size for info in archive.infolist()) < 2_500_000


def test_cards_and_configs_are_found_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "-c", "import stexpr; print(stexpr.__file__)")
    assert where.stdout.strip() == str(installed / "stexpr" / "__init__.py"), where.stderr
    listed = run(installed, tmp_path, "-m", "stexpr", "data", "list")
    assert listed.returncode == 0, listed.stderr
    for card in (ROOT / "data_cards").glob("*.md"):
        assert card.stem in listed.stdout
    for study in (ROOT / "configs" / "studies").glob("*.yaml"):
        shown = run(installed, tmp_path, "-m", "stexpr", "config", "show", study.stem)
        assert shown.returncode == 0, shown.stderr
        assert "cohort:" in shown.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_demo_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "-m", "stexpr", "demo", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for words in ("tiny + aux, fold 2: mean r", "mobilenetv3_small_050", "*color ridge*", "*training mean*", "3 patients"):
        assert words in done.stdout
    written = {path.name for path in (tmp_path / "stexpr-demo" / "leaderboard").iterdir()}
    tables = {"comparisons.csv", "leaderboard.csv", "leaderboard.md", "leaderboard.png", "patients.csv", "per_gene.csv"}
    assert written == {*tables, "index.html"}


def test_versions_agree(wheel: Path) -> None:
    import stexpr

    assert wheel.name.startswith(f"stexpr-{stexpr.__version__}-")
