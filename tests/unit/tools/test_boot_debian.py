"""Where the tests get a Debian from, by what apt says of its own."""

from __future__ import annotations

import pytest

from tests.boot.debian import archive
from tests.lab.namespace import LabError

MINE = """\
https://packages.example.org/apt stable Example Company Ltd.
http://security.example.net/debian-security bookworm-security Debian
http://deb.example.net/debian/ bookworm-updates Debian
http://deb.example.net/debian/ bookworm Debian
"""


def test_any_releases_archive_will_do() -> None:
    assert archive(MINE) == "http://deb.example.net/debian/"
    assert archive(MINE.replace("bookworm", "sid")) == "http://deb.example.net/debian/"


@pytest.mark.parametrize(
    "targets", ["", MINE.replace(" bookworm Debian", "  Debian"), MINE.replace(" Debian", " Other")]
)
def test_none_is_said(targets: str) -> None:
    with pytest.raises(LabError, match="apt-get update"):
        archive(targets)
