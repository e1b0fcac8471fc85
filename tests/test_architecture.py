"""The house stands as drawn: imports fall downward, heavy libraries stay out, files and functions stay small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "stexpr"
FLOORS = [
    {"errors"},
    {"types"},
    {"panel"},
    {"config"},
    {"data", "models"},
    {"inference"},
    {"evaluate"},
    {"engines"},
    {"train"},
    {"tl", "pl"},
    {"cli", "__init__"},
    {"__main__"},
]
HEAVY = ("torch", "timm", "scanpy", "squidpy", "wandb")
IN_ONE_MODULE = {
    "wandb": "train.wandb_client",
    "wandb_workspaces": "train.mirror_report",
    "openslide": "data.rasters",
    "scanpy": "panel",
    "ray": "engines.ray",
    "submitit": "engines.slurm",
    "onnx": "models.export.onnx",
    "onnxscript": "models.export.onnx",
    "onnxruntime": "models.export.onnx_runtime",
    "squidpy": None,
    "plotly": "evaluate.page.figures",
    "itables": "evaluate.page.tables",
    "igraph": "evaluate.domains",
    "spatialdata": "data.spatialdata",
    "geopandas": "data.spatialdata",
    "dask": "data.lazy_image",
    "xarray": "data.lazy_image",
}
"""Optional or heavy dependencies and the module (or package) that may import them, None while none does."""
DOCTOR = "cli.doctor"  # it imports everything, to say what is missing
FORBIDDEN_NAMES = {"utils", "util", "base", "common", "helpers", "misc"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_POSITIONAL = 300, 60, 7

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> dict[str, Path]:
    """Dotted name below stexpr -> file."""
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return named


MODULES = modules()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every imported name, in full."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, Function):
            yield node


def room(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int:
    found = [level for level, rooms in enumerate(FLOORS) if room(module) in rooms]
    assert found, f"{module} stands on no floor of the drawing"
    return found[0]


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_upward(module: str) -> None:
    for name, _ in imports(MODULES[module]):
        if not name.startswith("stexpr."):
            continue
        below = name.removeprefix("stexpr.")
        if room(below) == room(module):
            continue
        assert floor(below) < floor(module), f"stexpr.{module} imports {name}, which is not below it"


@pytest.mark.parametrize("library", IN_ONE_MODULE)
def test_a_heavy_dependency_has_one_home(library: str) -> None:
    homes = {module for module, path in MODULES.items() for name, _ in imports(path) if name.split(".")[0] == library} - {
        DOCTOR
    }
    home = IN_ONE_MODULE[library]
    assert {home if home and module.startswith(f"{home}.") else module for module in homes} == ({home} if home else set())


@pytest.mark.parametrize("module", MODULES)
def test_optional_dependencies_are_imported_inside_functions(module: str) -> None:
    path = MODULES[module]
    inside = {id(inner) for function in functions(path) for inner in ast.walk(function)}
    lazy = {*IN_ONE_MODULE, "matplotlib", "torchstain"}
    early = [name for name, node in imports(path) if name.split(".")[0] in lazy and id(node) not in inside]
    assert not early, f"stexpr.{module} imports {early} at the top"


@pytest.mark.parametrize(
    "command",
    [
        "import stexpr",
        "from stexpr.cli import app; app(['--help'], standalone_mode=False)",
    ],
    ids=["import stexpr", "stexpr --help"],
)
def test_a_light_command_loads_nothing_heavy(command: str) -> None:
    code = f"{command}\nimport sys; print('loaded:', *sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


def test_public_names_exist() -> None:
    import stexpr

    for name in stexpr.__all__:
        assert getattr(stexpr, name) is not None


@pytest.mark.parametrize("module", MODULES)
def test_names_are_nouns_found(module: str) -> None:
    assert not FORBIDDEN_NAMES & set(module.split("."))


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_small(module: str) -> None:
    path = MODULES[module]
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{path} has {lines} lines: look for the second idea in it"
    for node in functions(path):
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1 - docstring_lines(node)
        assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {length} lines of code"
        positional = len(node.args.posonlyargs) + len(node.args.args)
        assert positional <= MAX_POSITIONAL, f"{path}:{node.lineno} {node.name} takes {positional} positional arguments"


def docstring_lines(node: Function) -> int:
    first = node.body[0]
    has = ast.get_docstring(node) is not None and first.end_lineno is not None
    return first.end_lineno - first.lineno + 1 if has and first.end_lineno is not None else 0
