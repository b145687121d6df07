"""The wheel and the source distribution have all that the program needs, with and without a C compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.boot.debian import ROOT

pytestmark = pytest.mark.timeout(300)
SOURCES = ("agent", "encap", "registry", "pyproject.toml", "README.md", "LICENSE")


def test_a_package_for_another_processor_needs_its_compiler_and_says_so() -> None:
    done = subprocess.run([ROOT / "deploy/debian/build", "", "s390x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get install gcc-s390x-linux-gnu libc6-dev-s390x-cross libpython3-dev:s390x" in done.stderr


@pytest.mark.parametrize("compiler", [None, "/bin/false"], ids=["with a compiler", "without one"])
def test_the_wheel_is_made_from_the_source_distribution(tmp_path: Path, compiler: str | None) -> None:
    tree, out = tmp_path / "tree", tmp_path / "dist"
    tree.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    for built in tree.glob("encap/**/*.so"):
        built.unlink()
    environment = {**os.environ, **({"CC": compiler} if compiler else {})}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", out, tree],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entries,) = (archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    for package in ("agent", "encap", "registry"):
        sources = [path for ending in ("py", "pyi") for path in (ROOT / package).rglob(f"*.{ending}")]
        modules = {path.relative_to(ROOT).as_posix() for path in (*sources, ROOT / package / "py.typed")}
        data = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.binpb")}
        assert modules | data <= packed
        assert {f"flanneld_py/{name}" for name in modules | data} <= names
    assert {"encap/packet/accelerator.c", "encap/datapath/fastpath.c", "encap/packet/packet.h"} <= packed
    assert any(name.endswith(".so") for name in names) == (compiler is None)
    assert "flanneld-py = " in entries
    assert "flanneld-py-docker-opts = " in entries
