"""What a user receives: the source archive, the wheel built from it, and an install of that wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"sr_edge": ROOT / "edge", "sr_convert": ROOT / "convert", "sr_train": ROOT / "train"}
SHIPPED_MODELS = ROOT / "models" / "demo"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source archive, so that an incomplete archive fails here."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, sdist)
    (archive,) = folder.glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds our wheel alone; what it depends on is there already, where the tests run."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--target", folder, wheel)
    return folder


def test_sdist_holds_the_sources_and_no_more(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()]
    needed = {
        *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO", "README.md"),
        *("constraints.txt", "convert", "edge", "pyproject.toml", "tests", "train"),
    }
    assert {name.parts[0] for name in names} - {".gitignore", "docs", "models"} == needed
    assert not [name for name in names if "__pycache__" in name.parts]


def test_wheel_holds_the_three_packages_and_no_more(wheel: Path) -> None:
    names = names_in(wheel)
    assert {PurePosixPath(name).parts[0] for name in names} == {*PACKAGES, dist_info(wheel)}
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    modules = {
        path.relative_to(root).as_posix()
        for package, root in PACKAGES.items()
        for path in (root / package).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
    assert "sr_edge/serve/page.html" in names


def test_wheel_holds_the_demo_models_of_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            PurePosixPath(name).name: archive.read(name)
            for name in archive.namelist()
            if name.startswith("sr_edge/models/demo/")
        }
    assert packed == {path.name: path.read_bytes() for path in SHIPPED_MODELS.glob("*") if path.is_file()}
    assert {"small.gguf", "small.toml", "big.gguf", "big.toml"} <= packed.keys()


def test_wheel_carries_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{dist_info(wheel)}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_entry_points_lead_to_modules_in_the_wheel(installed: Path) -> None:
    entries = {(entry.group, entry.name): entry.value for entry in our_distribution(installed).entry_points}
    assert entries == {
        ("console_scripts", "sr-edge"): "sr_edge.__main__:run",
        ("sr_edge.commands", "convert"): "sr_convert.command:convert_app",
        ("sr_edge.commands", "quantize"): "sr_convert.command:quantize_app",
        ("sr_edge.commands", "train"): "sr_train.command:app",
        ("sr_edge.commands", "verify"): "sr_convert.command:verify_app",
        ("sr_edge.converters", "safetensors"): "sr_convert.pulled:convert_pulled",
    }
    for value in entries.values():
        module = installed / value.partition(":")[0].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()


def test_installed_command_tells_its_version(installed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    package = run(sys.executable, "-c", "import sr_edge; print(sr_edge.__file__)", env=environment)
    assert Path(package.strip()).is_relative_to(installed), "the checkout was imported, not the install"
    said = run(installed / "bin" / "sr-edge", "--version", env=environment)
    assert our_distribution(installed).version in said.split()


def test_every_requirement_is_pinned_for_the_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    required = {name_of(line) for lines in (project["dependencies"], *extras) for line in lines} - {"sr-edge"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.partition("==")[0] for line in lines if "==" in line]
    assert required <= set(pinned)
    assert len(pinned) == len(set(pinned))


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(command: str, *arguments: str | Path) -> None:
    """pip, kept away from every index and from our dependencies."""
    run(
        sys.executable,
        "-m",
        "pip",
        command,
        "--quiet",
        "--no-cache-dir",
        "--no-deps",
        "--no-index",
        *arguments,
    )


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def dist_info(wheel: Path) -> str:
    return "-".join(wheel.name.split("-")[:2]) + ".dist-info"


def our_distribution(folder: Path) -> Distribution:
    (distribution,) = distributions(path=[str(folder)])
    return distribution


def name_of(requirement: str) -> str:
    """`httpx>=0.28,<1` and `sr-edge[test]` to their bare names."""
    return requirement.translate(str.maketrans("[<>=", "    ")).split()[0]
