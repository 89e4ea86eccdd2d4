"""The environment of the evaluator image, without a container engine: the core and one faiss, and nothing else.

Every file comes by hard link from the full environment, which was installed under the same constraints, so it takes
seconds and no disk. Which distributions belong to it is read from their own metadata, as pip does. Vitrine itself is
built as a wheel and installed by pip, so what runs here is what a user would install.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("evaluators", "feature_store", "pipelines", "vitrine")
# What Dockerfile.evaluator installs; a test compares the two.
CORE = "vitrine[cpu]"
TOOLS = "vitrine[dev]"
# Brought by extraction alone: if one of these is there, the check that follows would prove nothing.
ABSENT = ("PIL", "apache_beam", "huggingface_hub", "safetensors", "timm", "torchvision")

_CHECK = f"""
import importlib, importlib.util, pathlib, pkgutil, sys
there = [name for name in {ABSENT!r} if importlib.util.find_spec(name)]
assert not there, f"not a core environment, it has {{there}}"
for package in ("feature_store", "evaluators"):
    folder = pathlib.Path(importlib.import_module(package).__file__).parent
    assert folder.is_relative_to(sys.prefix), f"{{package}} came from {{folder}}, not from the wheel"
    for module in pkgutil.iter_modules([str(folder)]):
        importlib.import_module(f"{{package}}.{{module.name}}")
importlib.import_module("faiss")
importlib.import_module("vitrine.cli")
"""


def main() -> None:
    """Build the environment, and prove that the store and the evaluators need nothing more."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where to make the environment; emptied first")
    folder = parser.parse_args().folder.resolve()
    start = time.monotonic()
    venv.create(folder, clear=True, symlinks=True)
    python = folder / "bin" / "python"
    target = site_packages(folder)
    core = closure(CORE)
    for name in core:
        link_distribution(name, target)
    install_wheel(python)
    require_whole(target)
    subprocess.run([python, "-I", "-c", _CHECK], check=True)
    # Only now, so that nothing above can lean on a test's tool.
    for name in closure(TOOLS) - core:
        link_distribution(name, target)
    print(f"core environment: {len(core)} distributions and Vitrine's wheel, {time.monotonic() - start:.0f} s")


def site_packages(environment: Path) -> Path:
    """Where an environment of this interpreter keeps its packages."""
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def closure(requirement: str) -> set[str]:
    """The installed distributions that a requirement brings, by canonical name, Vitrine itself left out.

    Raises:
        importlib.metadata.PackageNotFoundError: one of them is not installed.
    """
    pending = [Requirement(requirement)]
    seen: set[tuple[str, str]] = set()
    while pending:
        wanted = pending.pop()
        name = canonicalize_name(wanted.name)
        for extra in ("", *wanted.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in importlib.metadata.distribution(name).requires or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    pending.append(needed)
    return {name for name, _ in seen} - {"vitrine"}


def link_distribution(name: str, target: Path) -> None:
    """Link the files of an installed distribution into `target`; scripts, which name their interpreter, stay behind."""
    distribution = importlib.metadata.distribution(name)
    for file in distribution.files or ():
        if ".." in file.parts:
            continue
        source, place = Path(str(distribution.locate_file(file))), target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, place)
        except FileNotFoundError:
            continue  # listed, but never written: bytecode, where the installer was told not to
        except OSError:
            shutil.copy2(source, place)  # another disk


def install_wheel(python: Path) -> None:
    """Build Vitrine's wheel from a copy, so that no older build gets into it, and install it alone."""
    with tempfile.TemporaryDirectory(prefix="vitrine-wheel-") as name:
        source = Path(name) / "source"
        for package in PACKAGES:
            shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, source)
        pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", name, str(source)], check=True)
        wheels = [str(path) for path in Path(name).glob("*.whl")]
        subprocess.run([*pip, "--python", str(python), "install", "--no-deps", *wheels], check=True)


def require_whole(target: Path) -> None:
    """Refuse a wheel that left out a file of a package.

    Raises:
        SystemExit: names the files.
    """
    lacking = sorted(
        str(path.relative_to(ROOT))
        for path in _files(ROOT / package for package in PACKAGES)
        if not (target / path.relative_to(ROOT)).is_file()
    )
    if lacking:
        raise SystemExit(
            f"the wheel lacks {', '.join(lacking)}; add their folder to [tool.setuptools] in pyproject.toml."
        )


def _files(folders: Iterable[Path]) -> list[Path]:
    """All files but caches, which stand in folders named with a dot or two underscores."""
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)
    ]


if __name__ == "__main__":
    main()
