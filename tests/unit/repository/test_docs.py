"""What is written for people agrees with the rest: links lead somewhere, and every line that asks for a human is in the
guide that says what to do about it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path
    for folder in ("", "docs", "docs/design", "vagrant", "deploy", "tests")
    for path in (ROOT / folder).glob("*.md")
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
LOUD = ("warn", "warning", "error", "critical")


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


def test_every_guide_is_in_the_index_and_the_readme_leads_to_it() -> None:
    guides = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(LINK.findall((ROOT / "docs/README.md").read_text())) >= guides
    assert "docs/README.md" in LINK.findall((ROOT / "README.md").read_text())


def loud_lines() -> Iterator[tuple[str, str]]:
    """Where each warning or error is written, and the words that it begins with."""
    for path in (*sorted(ROOT.glob("agent/**/*.py")), ROOT / "encap/netlink/device.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(ast.Attribute(_, level), [ast.Constant(str(text)), *_]) if level in LOUD:
                    yield f"{path.name}:{node.lineno}", text
                case ast.Call(ast.Attribute(_, level), [ast.JoinedStr([ast.Constant(str(text)), *_]), *_]) if (
                    level in LOUD
                ):
                    yield f"{path.name}:{node.lineno}", text


def test_every_warning_is_in_the_guide() -> None:
    guide = (ROOT / "docs/troubleshoot.md").read_text()
    told = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", guide, flags=re.DOTALL))
    lines = list(loud_lines())
    assert len(lines) > 30
    assert [
        where for where, text in lines if not any(text.startswith(words) or words.startswith(text) for words in told)
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"\b(?:agent|encap|registry|tests)/[\w/]+\.(?:py|c|h)\b", page.read_text(encoding="utf-8"))
    assert [name for name in named if page.name != "CHANGELOG.md" and not (ROOT / name).exists()] == []
