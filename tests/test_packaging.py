"""What a stranger installs: constraints, the wheel's contents, images, and the one command that CI runs."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import PackageFinder

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("evaluators", "feature_store", "pipelines", "vitrine")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
IMAGES = ("Dockerfile.worker", "Dockerfile.evaluator")


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned() -> dict[str, str]:
    return {canonicalize_name(entry.name): str(entry.specifier).removeprefix("==") for entry in constraints()}


def requirements(*extras: str) -> list[Requirement]:
    project = PROJECT["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines if not line.startswith("vitrine")]


def instructions(name: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions as (word, arguments), lines that are continued joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "docker" / name).read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines()]
    words = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return [(word.upper(), rest) for word, rest in words]


def pip_requirements(name: str) -> list[str]:
    """What the image's pip installs, without options."""
    (line,) = [rest for word, rest in instructions(name) if word == "RUN" and rest.startswith("pip install")]
    arguments = shlex.split(line)[2:]
    assert arguments[arguments.index("-c") + 1] == "constraints.txt"
    return [argument for argument in arguments if argument.startswith(".")]


# --- constraints -----------------------------------------------------------------------------------------------------


def test_every_constraint_pins_one_version_and_names_no_place() -> None:
    for entry in constraints():
        assert re.fullmatch(r"==[0-9][0-9A-Za-z.!]*", str(entry.specifier)), str(entry)
        assert entry.url is None
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"://|^\s*-|@|/(home|root|usr|opt)/", text, flags=re.MULTILINE) is None


def test_constraints_satisfy_every_declared_dependency() -> None:
    versions = pinned()
    # faiss-gpu is one or the other with faiss-cpu, and no part of `all`.
    for wanted in requirements("extract", "cpu", "xarray", "s3", "demo", "dev"):
        assert versions[canonicalize_name(wanted.name)] in wanted.specifier, str(wanted)


def test_installed_versions_are_the_constrained_ones() -> None:
    versions = pinned()
    for name in ("numpy", "torch", "zarr", "numcodecs"):
        assert version(name).split("+")[0] == versions[name]


def test_torch_2_13_0_is_excluded() -> None:
    (torch,) = [entry for entry in requirements() if entry.name == "torch"]
    assert "2.13.0" not in torch.specifier
    assert pinned()["torch"] != "2.13.0"


def test_all_is_everything_but_gpu() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = [Requirement(line) for line in extras["all"]]
    assert everything.extras == set(extras) - {"all", "gpu"}


# --- the distribution ------------------------------------------------------------------------------------------------


def test_every_package_folder_is_in_the_distribution() -> None:
    folders = {path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    found = PackageFinder.find(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    assert set(found) == {".".join(folder.parts) for folder in folders}


def test_every_package_says_that_it_is_typed() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()


def test_license_is_apache_2_in_full() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert [f"{number}. " in text for number in range(1, 10)] == [True] * 9
    assert "END OF TERMS AND CONDITIONS" in text


def test_changelog_tells_of_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {PROJECT['project']['version']}" in text


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_everything_that_an_image_copies_exists(name: str) -> None:
    copied = [rest.split() for word, rest in instructions(name) if word == "COPY"]
    assert copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for *paths, _target in copied:
        for path in paths:
            assert (ROOT / path).exists(), path
            assert f"!{path}" in ignored, f"{path} never reaches the engine"


@pytest.mark.parametrize("name", IMAGES)
def test_images_hold_all_that_the_build_needs_and_run_as_no_root(name: str) -> None:
    told = instructions(name)
    copied = {path for word, rest in told if word == "COPY" for path in rest.split()[:-1]}
    assert {*PACKAGES, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= copied
    assert [rest for word, rest in told if word == "USER"] == ["vitrine"]
    assert ("ENTRYPOINT", '["vitrine"]') in told


def test_evaluator_image_installs_what_core_test_installs() -> None:
    source = (ROOT / "docker" / "core_environment.py").read_text(encoding="utf-8")
    (core,) = re.findall(r'^CORE = "vitrine(\[.*\])"$', source, flags=re.MULTILINE)
    assert pip_requirements("Dockerfile.evaluator") == [f".{core}"]
    names = {entry.name for entry in requirements(*core.strip("[]").split(","))}
    assert names.isdisjoint({"timm", "apache-beam", "torchvision", "pillow"})


def test_worker_image_installs_what_extraction_needs() -> None:
    assert pip_requirements("Dockerfile.worker") == [".[extract]"]


def test_compose_file_hands_the_store_from_worker_to_evaluator() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    worker, evaluator = compose["services"]["worker"], compose["services"]["evaluator"]
    for service in (worker, evaluator):
        context = (ROOT / "docker" / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()
        assert "store:/store" in service["volumes"]
        assert "/store" in service["command"]
    assert {volume.split(":")[0] for volume in evaluator["volumes"]} == {"store"}
    assert evaluator["depends_on"]["worker"]["condition"] == "service_completed_successfully"
    named = {volume.split(":")[0] for service in (worker, evaluator) for volume in service["volumes"]}
    assert set(compose["volumes"]) <= named


# --- the one command -------------------------------------------------------------------------------------------------


def test_ci_runs_make_test_with_the_images_beside_the_repository(tmp_path: Path) -> None:
    repository = tmp_path / "a place" / "repository"
    (repository / ".ci").mkdir(parents=True)
    (tmp_path / "a place" / "shared" / "data").mkdir(parents=True)
    script = shutil.copy(ROOT / ".ci" / "run", repository / ".ci" / "run")
    assert Path(script).stat().st_mode & stat.S_IXUSR
    (repository / "Makefile").write_text('test:\n\t@echo "in $(CURDIR)"; echo "data $$VITRINE_TEST_DATA"; cat\n')
    # Run by `make test`, these tests have a make above them, which would make the one below talk.
    ours = {"VITRINE_TEST_DATA", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run([script], input="typed", env=environment, cwd="/", capture_output=True, text=True, check=True)
    data = tmp_path / "a place" / "shared" / "data"
    assert done.stdout.splitlines() == [f"in {repository}", f"data {data}"]


def test_make_help_names_every_target() -> None:
    done = subprocess.run(
        ["make", "-s", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    named = {line.split()[1] for line in done.stdout.splitlines()}
    assert named == {"help", "venv", "demo", "test", "lint", "faults", "bench", "core-test", "clean"}
