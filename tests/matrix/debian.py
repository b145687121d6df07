"""Debian's archive, from wherever this machine's own apt gets it: kernels and whole userlands, into folders.

Nothing is installed on this machine. What is in its folder is not fetched again; remove the folder for newer ones.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.boot import debian
from tests.lab.namespace import LabError

ROOT = Path(__file__).parents[2]
RELEASES = {"bookworm": "Debian 12", "trixie": "Debian 13", "sid": "Debian sid"}
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class MatrixError(Exception):
    """Something that the matrix needs could not be had. The text says what, and the tool's own words."""


def command(*argv: str | Path, cwd: Path | None = None, stdin: str = "") -> str:
    """Run a command to its end and return what it prints. Raises MatrixError."""
    done = subprocess.run(list(map(str, argv)), cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise MatrixError(f"`{' '.join(map(str, argv))}` failed with exit code {done.returncode}: {said}")
    return done.stdout


def mirror() -> str:
    """Find the archive that this machine's apt uses for Debian itself. Raises MatrixError."""
    try:
        return debian.mirror()
    except LabError as error:
        raise MatrixError(str(error)) from error


def kernel(release: str, place: Path) -> Path:
    """Return the folder with a release's kernel: vmlinuz and lib/modules, not installed. Raises MatrixError."""
    if place.exists():
        return place
    unfinished = place.with_name(f"{place.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for folder in ("apt/lists/partial", "apt/cache/archives/partial", "packages"):
        (unfinished / folder).mkdir(parents=True)
    apt = _apt(release, unfinished / "apt")
    command("apt-get", *apt, "update", "-qq")
    # The metapackage names the image; in newer releases the image has its modules in packages of their own.
    (image,) = _depends(apt, "linux-image-amd64", r"linux-image-\d\S*")
    packages = [image, *_depends(apt, image, r"linux-(?:modules|binary)-\d\S*")]
    command("apt-get", *apt, "download", "-qq", *packages, cwd=unfinished / "packages")
    for package in (unfinished / "packages").iterdir():
        command("dpkg-deb", "-x", package, unfinished)
        package.unlink()
    if not (unfinished / "lib").exists():
        (unfinished / "lib").symlink_to("usr/lib")
    command("depmod", "-b", unfinished, version(unfinished))
    shutil.rmtree(unfinished / "apt")
    unfinished.rename(place)
    return place


def version(tree: Path) -> str:
    """Tell the version of the kernel in a folder."""
    (modules,) = (tree / "lib/modules").iterdir()
    return modules.name


def _apt(release: str, folder: Path) -> list[str]:
    """Options that make apt look at one release, and at nothing of this machine but its settings for the network."""
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={KEYS}] {mirror()} {release} main\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        "Acquire::Check-Valid-Until": "false",
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _depends(apt: Sequence[str], package: str, pattern: str) -> list[str]:
    """Names of a package's dependencies that match."""
    shown = command("apt-cache", *apt, "show", "--no-all-versions", package)
    depends = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
    names = [each.split()[0] for each in depends[1].split(",")] if depends else []
    return [name for name in names if re.fullmatch(pattern, name)]
