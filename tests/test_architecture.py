"""The house rules, held by parsing every source file, and by looking at what a fresh process has loaded."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.fresh_process import loaded_after

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("evaluators", "feature_store", "pipelines", "vitrine")
MAX_LINES = 600

# What a package must not import. `vitrine` imports all three, and nobody imports it.
FORBIDDEN = {
    "feature_store": {"pipelines", "evaluators", "vitrine", "torch", "timm", "apache_beam", "torchvision", "PIL"},
    "evaluators": {"pipelines", "vitrine", "timm", "apache_beam", "torchvision", "PIL"},
    "pipelines": {"evaluators", "vitrine"},
    "vitrine": {"timm", "apache_beam", "torchvision"},
}

# Imports inside functions, each with its reason. vitrine/ needs none: its commands import what they run.
LATE_IMPORTS = {
    ("feature_store/query/rows.py", "feature_store"): "DuckDB, dask, xarray and torch come with who asks for them",
    ("feature_store/token_reader.py", "zarr"): "a shard of ours is mapped, and zarr is half of what `ls` would load",
    ("feature_store/remote_objects.py", "zarr"): "as for token_reader.py: it opens what is not mapped",
    ("evaluators/neighbors.py", "faiss"): "either of two distributions, or none: torch searches then",
    ("feature_store/exports/projection.py", "sklearn"): "an extra that t-SNE alone needs",
    ("pipelines/backbones/families.py", "pipelines"): "a family is loaded when one of its models is asked for",
    ("pipelines/backbones/remembered.py", "pipelines"): "a model that is remembered needs no torch",
    ("pipelines/cost.py", "torch"): "only a batch that is timed needs it, and a dry run times none",
    ("pipelines/devices.py", "torch"): "only a machine with a GPU is asked for it",
    ("pipelines/environment.py", "torch"): "a plan needs the environment only where there is one to compare it with",
    ("pipelines/run.py", "pipelines"): "the unit of work needs torch, and a plan does not",
    ("pipelines/beam_steps.py", "pipelines"): "a driver only hands the step on, and would load torch",
}

# A dataset for torch must be one of torch's classes; nothing but `to_torch` loads the module.
TORCH_OF_THE_STORE = "feature_store/query/torch_rows.py"


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The dotted names that are imported anywhere in a tree, each with its statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports here are absolute"
            assert node.module is not None
            yield node.module, node


def top(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def late_imports(path: Path) -> set[str]:
    """Top-level names of what functions of a file import when called."""
    functions = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {top(module) for function in functions for module, _ in imported_modules(function)}


# --- what the sources say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_the_allowed_direction_only(package: str) -> None:
    wrong = [
        f"{name_of(path)}:{getattr(node, 'lineno', 0)} imports {module}"
        for path in sources(package)
        for module, node in imported_modules(parsed(path))
        if top(module) in FORBIDDEN[package] and (name_of(path), top(module)) != (TORCH_OF_THE_STORE, "torch")
    ]
    assert wrong == []


def test_every_folder_of_sources_is_held_to_the_rules() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert folders == {*PACKAGES, "tests", "benchmarks", "docker"} & folders
    assert set(PACKAGES) <= folders


def test_init_files_hold_a_docstring_imports_and_a_sorted_all_only() -> None:
    for path in sources(*PACKAGES):
        if path.name != "__init__.py":
            continue
        tree = parsed(path)
        assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
        names: list[str] | None = None
        for node in tree.body[1:]:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                assert isinstance(target, ast.Name), f"{name_of(path)}:{node.lineno}"
                assert target.id == "__all__", f"{name_of(path)}:{node.lineno} assigns {target.id}"
                assert node.value is not None
                names = ast.literal_eval(node.value)
            elif isinstance(node, ast.If):
                require_names_loaded_late(node, path)
            else:
                assert isinstance(node, ast.Import | ast.ImportFrom), f"{name_of(path)}:{node.lineno}"
        assert names is not None, f"{name_of(path)} has no __all__"
        # Ruff's order (RUF022): constants, then classes, then functions.
        assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
        bound = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                 for alias in node.names}  # fmt: skip
        assert set(names) <= bound, f"{name_of(path)} names {sorted(set(names) - bound)}, which it does not import"


def require_names_loaded_late(node: ast.If, path: Path) -> None:
    """The one other thing that an __init__.py may hold: names that load torch, and so are loaded when asked for.

    A type checker reads them as imports; at run time the same names come through the package's `__getattr__`. That both
    lists are the same cannot be left to whoever adds a name.
    """
    where = f"{name_of(path)}:{node.lineno}"
    assert ast.unparse(node.test) == "TYPE_CHECKING", where
    seen = set()
    for each in node.body:
        assert isinstance(each, ast.ImportFrom), where
        seen |= {(each.module, alias.name) for alias in each.names}
    (assigned,) = node.orelse
    assert isinstance(assigned, ast.Assign), where
    assert ast.unparse(assigned.targets[0]) == "__getattr__", where
    assert isinstance(assigned.value, ast.Call), where
    called, (of_package, table) = ast.unparse(assigned.value.func), assigned.value.args
    assert (called, ast.unparse(of_package)) == ("names_loaded_late", "__name__"), where
    late = ast.literal_eval(table)
    package = name_of(path.parent).replace("/", ".")
    assert seen == {(f"{package}.{module}", name) for module, names in late.items() for name in names}, where


def test_functions_import_only_what_is_listed_with_a_reason() -> None:
    found = {
        (name_of(path), module)
        for path in sources("evaluators", "feature_store", "pipelines")
        for module in late_imports(path)
    }
    assert found == set(LATE_IMPORTS)


@pytest.mark.parametrize("path", sources(*PACKAGES, "tests", "benchmarks", "docker"), ids=name_of)
def test_no_file_is_longer_than_600_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    core = project["dependencies"]
    declared = {
        "feature_store": core + extras["xarray"] + extras["atlas"],
        "evaluators": core + extras["cpu"],
        "pipelines": core + extras["extract"] + extras["demo"],
        "vitrine": core + extras["extract"] + extras["demo"],
    }
    distributions_of = packages_distributions()
    for package, requirements in declared.items():
        allowed = {canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in requirements}
        for path in sources(package):
            for module, _ in imported_modules(parsed(path)):
                if top(module) in sys.stdlib_module_names or top(module) in PACKAGES:
                    continue
                providers = {canonical(name) for name in distributions_of.get(top(module), [])}
                assert providers & allowed, f"{name_of(path)} imports {module}, which {package} does not declare"


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


# --- what a fresh process loads --------------------------------------------------------------------------------------


def test_feature_store_loads_neither_torch_nor_beam_nor_timm() -> None:
    late = ("duckdb", "dask", "distributed", "xarray", "pandas", "faiss")
    assert loaded_after("import feature_store", "torch", "apache_beam", "timm", "torchvision", "PIL", *late) == set()


def test_evaluators_load_neither_beam_nor_timm() -> None:
    assert loaded_after("import evaluators", "apache_beam", "timm", "torchvision", "PIL", "pipelines") == set()


@pytest.mark.parametrize("module", ["feature_store", "pipelines.extract"])
def test_unit_of_work_and_store_import_without_beam_and_duckdb(module: str) -> None:
    blocked = ("apache_beam", "duckdb")
    assert loaded_after(f"import {module}", *blocked, blocked=blocked) == set()


def test_the_null_model_extracts_without_timm() -> None:
    code = """
from pipelines.backbones import load_backbone, resolve_backbone
import pipelines.run, vitrine.extraction
load_backbone(resolve_backbone("null"))
"""
    blocked = ("timm", "torchvision", "huggingface_hub")
    assert loaded_after(code, *blocked, blocked=blocked) == set()


def test_help_loads_nothing_heavy() -> None:
    code = """
sys.argv = ["vitrine", "--help"]
from vitrine.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    heavy = ("torch", "apache_beam", "timm", "zarr", "numpy", "pyarrow", "duckdb", "dask", "PIL", "fsspec")
    assert loaded_after(code, *heavy) == set()
