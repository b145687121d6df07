"""JSON objects, read as strictly as Go's reader does and written as its writer does: what flannel reads and writes.

Strings are UTF-8, but for `<`, `>`, `&`, U+2028 and U+2029, which are written as \\uXXXX.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NoReturn

from flanneld_py.registry.model import Json

NESTING = 100

# A lone surrogate has no UTF-8 form; Go's reader replaces it the same way.
_ESCAPES = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"number {text[:20]} is too large")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def parse_object(value: bytes) -> dict[str, Json]:
    """Read a JSON object. As strict as Go's reader: UTF-8, no NaN, no infinite numbers. Raises ValueError."""
    # What the reader can just take, others that walk over it (a comparison, a log line) cannot.
    if value.count(b"[") + value.count(b"{") > NESTING:
        raise ValueError(f"the value is nested too deeply: more than {NESTING} lists and objects")
    try:
        document = _DECODER.decode(value.decode())
    except ValueError as error:
        raise ValueError(f"the value is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"the value is {show(document)}: expected a JSON object")
    return document


def show(value: Json) -> str:
    """Show a JSON value in an error message, in a few words."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            text = json.dumps(value)
            return text if len(text) <= 80 else text[:77] + "..."


def dump(document: Mapping[str, Json]) -> bytes:
    """Write a JSON object as Go does. Raises ValueError if there is something that JSON cannot say."""
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError("the value is nested too deeply to be written") from None
    return _ESCAPES.sub(_escape, text).encode()


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"
