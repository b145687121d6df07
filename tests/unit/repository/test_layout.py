"""The repository keeps its shape: what is packaged, what stands at the top, what a module says about itself."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("agent", "encap", "registry")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("**/*.py"))


def test_every_package_is_packaged() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tools = project["tool"]["setuptools"]
    folders = sorted({path.parent.relative_to(ROOT) for path in MODULES})
    assert tools["packages"] == [f"flanneld_py.{'.'.join(folder.parts)}" for folder in folders]
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)
    assert tools["package-dir"] == {f"flanneld_py.{package}": package for package in PACKAGES}
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()
        assert (ROOT / ".typing/flanneld_py" / package).resolve() == ROOT / package


def test_no_module_is_packaged_without_its_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    built = (".py", ".pyc", ".c", ".h", ".so", "")
    data = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix not in built]
    assert all(any(path.match(pattern) for pattern in patterns) for path in data)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_module_says_what_it_is_and_is_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 400
