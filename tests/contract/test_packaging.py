"""What is shipped: wheel and source archive against the tree. The device's wheel: test_device_install.py."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.install
ROOT = Path(__file__).parents[2]
SOURCES = ("edgerun", "converters", "quantize", "targets")


def _call(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel, built from a copy: a build folder of earlier days would ship deleted files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*SOURCES, "tests"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    try:
        _call(sys.executable, "-m", "build", "--outdir", out, source, cwd=out)
    except RuntimeError as error:
        if "No matching distribution" not in str(error) and "Connection" not in str(error):
            raise
        pytest.skip(f"setuptools cannot be fetched here, so nothing is built: {str(error)[-300:]}")
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


def _tree() -> set[str]:
    """Every file of the package in the checkout, as site-packages shall have it."""
    found = set()
    for folder in SOURCES:
        base = "edgerun" if folder == "edgerun" else f"edgerun/{folder}"
        for path in (ROOT / folder).rglob("*"):  # does not enter the three links
            inside = path.relative_to(ROOT / folder)
            if path.is_file() and path.suffix in {".py", ".toml", ".typed", ".html"} and not path.is_symlink():
                found.add(f"{base}/{inside.as_posix()}")
    return found


def test_every_package_is_listed() -> None:
    """A subpackage that pyproject.toml does not list is missing from the wheel without a word."""
    setuptools = importlib.import_module("tomllib").loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.removesuffix("/__init__.py").replace("/", ".") for name in _tree() if name.endswith("__init__.py")}
    assert set(setuptools["packages"]) == packages
    assert all((ROOT / folder).is_dir() for folder in setuptools["package-dir"].values())


def test_the_links_lead_to_the_real_folders() -> None:
    for name in SOURCES[1:]:
        link = ROOT / "edgerun" / name
        assert link.is_symlink() and link.readlink() == Path("..") / name


def test_the_wheel_is_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        told = {name: archive.read(name) for name in names if name.startswith("edgerun/")}
    assert set(told) == _tree()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"edgerun"}, "nothing else reaches site-packages"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for name, content in told.items():
        assert content == (ROOT / name).read_bytes(), name


def test_the_source_archive_is_complete(dist: Path) -> None:
    (found,) = dist.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        assert not [member for member in archive.getmembers() if member.issym() or member.islnk()]
    sources = {name.removeprefix("edgerun/") if name.split("/")[1] in SOURCES[1:] else name for name in _tree()}
    assert sources | {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"} <= names
    assert not [name for name in names if name.startswith("tests/")]
