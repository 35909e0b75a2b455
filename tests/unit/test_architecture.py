"""The rules that keep the code readable: which module imports which, how long files, functions and pages are."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

# from the top to the bottom of sesam: a module imports modules of its own layer and of those below it
LAYERS = [
    {"cli", "api"},
    {"reporting"},
    {"segmentation", "sam", "datasets"},
    {"simulation", "prompting", "selection", "merging"},
    {"execution", "artifacts"},
    {"geometry"},
    {"params", "presets", "paths", "errors", "seeds", "labels", "scores", "git"}
    | {"regular_files", "yaml_io", "late_imports"},
]
INDEPENDENT = {"segmentation", "sam", "datasets"}  # do not import each other
OUTSIDE = {"demo", "__init__", "__main__"}  # the drawn scenes, and entry points
LONG_FUNCTIONS: set[str] = set()  # path:name of functions that may exceed MAX_FUNCTION
MAX_FUNCTION, MAX_STAGE, MAX_PRESET = 50, 80, 40  # lines
MAX_WORDS = {  # of pages together
    "README.md": 900,
    "CONTRIBUTING.md": 550,
    "docs/getting-started.md": 600,
    "docs/how-to/*.md": 2200,
    "docs/reference/pipeline.md docs/reference/file-formats.md": 900,
    "docs/explanation/*.md": 1800,
    "docs/results/index.md docs/results/performance.md docs/results/experiment-log.md": 2200,
}


def modules(*folders: str) -> dict[str, Path]:
    """Dotted name to path, without __init__ in the name of a package."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """What a module imports, also inside functions: dotted names of modules, or of what is in them."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def importers(package: str, *folders: str) -> set[str]:
    """The modules in the folders that import a package."""
    return {
        name
        for name, path in modules(*folders).items()
        if any(target == package or target.startswith(f"{package}.") for target in imports(path))
    }


def test_stages_import_only_the_library() -> None:
    assert not importers("stages", "stages")
    assert not importers("sesam.cli", "stages")


def test_the_library_does_not_know_its_users() -> None:
    for package in ("stages", "tools", "benchmarks", "tests"):
        assert not importers(package, "sesam"), package
    for path in modules("sesam").values():
        strings = [node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)]
        named = [text for text in strings if isinstance(text, str) and re.match(r"(stages|tools|benchmarks)\.", text)]
        assert not named, f"{path.relative_to(ROOT)} names {named}"


def test_only_programs_import_the_cli() -> None:
    allowed = ("sesam.cli", "sesam.__main__")
    assert not {name for name in importers("sesam.cli", "sesam", "stages") if not name.startswith(allowed)}


def test_imports_follow_the_layers() -> None:
    level = {unit: k for k, layer in enumerate(LAYERS) for unit in layer}
    wrong = []
    for name, path in modules("sesam").items():
        unit = name.split(".")[1] if "." in name else "__init__"
        if unit in OUTSIDE:
            continue
        assert unit in level, f"{name} is in no layer"
        for target in imports(path):
            below = target.split(".")[1] if target.startswith("sesam.") else None
            up = below in level and level[below] < level[unit]
            if up or (below != unit and {below, unit} <= INDEPENDENT):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_no_import_circles() -> None:
    known = modules("sesam", "stages")
    graph = {name: imports(path) & known.keys() - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_files_and_functions_are_short() -> None:
    long = [path.name for path in modules("stages").values() if length(path) > MAX_STAGE]
    long += [path.name for path in (ROOT / "presets").glob("*.yaml") if length(path) > MAX_PRESET]
    for path in modules("sesam", "stages").values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION:
                long.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert set(long) == LONG_FUNCTIONS


@pytest.mark.parametrize("pages", MAX_WORDS)
def test_pages_are_short(pages: str) -> None:
    paths = [path for pattern in pages.split() for path in ROOT.glob(pattern)]
    assert sum(len(path.read_text(encoding="utf-8").split()) for path in paths) <= MAX_WORDS[pages]
