"""The factor on deadlines: how it is read, and that every wait with a root test's deadline takes it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import factor

TESTS = Path(__file__).parents[2]
WAITING = [*(path for part in ("lab", "netns", "boot") for path in (TESTS / part).glob("*.py"))]
WAITING += [TESTS / "contract/kernel_host.py", TESTS / "cni_call.py"]


@pytest.mark.parametrize("text", ["0", "0.5", "-1", "nan", "inf", "", "much"])
def test_a_factor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"FLANNELD_PY_PATIENCE is .*: give a number of 1 or more"):
        factor(text)


def test_a_factor_is_a_number() -> None:
    assert [factor(text) for text in ("1", "8", "2.5")] == [1, 8, 2.5]


@pytest.mark.parametrize("path", WAITING, ids=lambda path: str(path.relative_to(TESTS)))
def test_every_deadline_is_stretched(path: Path) -> None:
    assert list(_rigid(ast.parse(path.read_text()))) == [], "use tests/patience.py: patient(seconds) or within(seconds)"


def _rigid(tree: ast.Module) -> Iterator[str]:
    """Find waits of the standard library that are not `patient`, and deadlines that are not `within`."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Add)
            and ast.unparse(node.left) == "time.monotonic()"
        ):
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        seconds = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
        match called.rpartition("."):
            case ("subprocess", _, _) | (_, _, "communicate" | "create_connection"):
                pass
            case ("asyncio", _, "timeout"):
                seconds = node.args
            case (owner, _, "wait") if "rocess" in owner or all(isinstance(each, ast.Constant) for each in node.args):
                seconds = node.args
            case _:
                continue
        for each in seconds:
            if not (isinstance(each, ast.Call) and ast.unparse(each.func) == "patient"):
                yield f"line {node.lineno}: {called}(... {ast.unparse(each)})"
