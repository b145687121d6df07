"""What the CNI specification says, as far as the plugin needs it: a call's request, versions, errors. No I/O.

    environment + standard input -> request -> Request, or CniError

https://www.cni.dev/docs/spec/ 1.1.0. What is asked and what is answered stays JSON as it came: the delegate's plugin
understands more of it than we do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

Json = dict[str, object]

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""Commands that came later than ADD and DEL."""

_NEEDED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}
# Both become part of a file's name.
CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,200}")
INTERFACE = re.compile(r"(?!\.\.?$)[^\s/:]{1,15}")


class Code(IntEnum):
    """Error codes: the specification's, from 100 on ours."""

    VERSION = 1
    UNKNOWN_CONTAINER = 3
    ENVIRONMENT = 4
    IO = 5
    DECODE = 6
    CONFIG = 7
    TRY_AGAIN = 11
    UNAVAILABLE = 50
    SUBNET_FILE = 100
    DELEGATE = 101
    OUTSIDE = 102
    BRIDGE = 103


class CniError(Exception):
    """The call failed: a code, and a sentence for the operator."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details

    def answer(self, version: str) -> Json:
        """Return what is printed on standard output."""
        answer: Json = {"cniVersion": version, "code": int(self.code), "msg": str(self)}
        return answer | ({"details": self.details} if self.details else {})


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `netns` is empty if the container is gone already; `conf` is the network's configuration."""

    command: str
    container: str
    netns: str
    interface: str
    path: tuple[str, ...]
    version: str
    conf: Json


def request(environment: Mapping[str, str], stdin: bytes) -> Request:
    """Read a call. Raises CniError."""
    command = environment.get("CNI_COMMAND", "")
    if command not in _NEEDED:
        raise CniError(Code.ENVIRONMENT, f"CNI_COMMAND={command}: expected one of {', '.join(_NEEDED)}")
    conf = decoded(stdin, "the network configuration") if stdin.strip() or command != "VERSION" else {}
    version = conf.get("cniVersion", NEWEST if command == "VERSION" else None)
    if command != "VERSION":
        _check_version(command, version)
    if missing := [name for name in _NEEDED[command] if not environment.get(name)]:
        raise CniError(Code.ENVIRONMENT, f"{command} needs {', '.join(missing)} in the environment")
    container, interface = environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", "")
    if container and not CONTAINER.fullmatch(container):
        expected = "expected letters, digits, '_', '.' and '-', a letter or digit first"
        raise CniError(Code.ENVIRONMENT, f"CNI_CONTAINERID={container!r}: {expected}")
    if interface and not INTERFACE.fullmatch(interface):
        raise CniError(Code.ENVIRONMENT, f"CNI_IFNAME={interface!r}: expected a device name of at most 15 characters")
    path = tuple(part for part in environment.get("CNI_PATH", "").split(":") if part)
    return Request(command, container, environment.get("CNI_NETNS", ""), interface, path, str(version), conf)


def decoded(stdin: bytes, what: str) -> Json:
    """Read an object, which is `what`. Raises CniError."""
    try:
        conf = json.loads(stdin)
    except ValueError as error:
        raise CniError(Code.DECODE, f"{what} on standard input is no JSON: {error}") from error
    if not isinstance(conf, dict):
        raise CniError(Code.DECODE, f"{what} is a {type(conf).__name__}: expected an object")
    return conf


def text(conf: Json, key: str, where: str = "") -> str:
    """Return a string of an object that is at `where`, "" if there is none. Raises CniError."""
    value = conf.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    raise wrong(where + key, value, "a string")


def section(conf: Json, key: str, where: str = "") -> Json | None:
    """Return an object in an object. Raises CniError."""
    value = conf.get(key)
    if value is None or isinstance(value, dict):
        return value
    raise wrong(where + key, value, "an object")


def listed(conf: Json, key: str, where: str = "") -> list[Json] | None:
    """Return a list of an object; what is in it is not looked at. Raises CniError."""
    value = conf.get(key)
    if value is None or isinstance(value, list):
        return value
    raise wrong(where + key, value, "a list")


def wrong(key: str, value: object, expected: str) -> CniError:
    """Return the error about a value that is not as expected."""
    return CniError(Code.CONFIG, f'"{key}" is {value!r}: expected {expected}')


def _check_version(command: str, version: object) -> None:
    if version not in VERSIONS:
        said = "no cniVersion" if version is None else f"cniVersion {version}"
        raise CniError(Code.VERSION, f"the network configuration has {said}: expected one of {', '.join(VERSIONS)}")
    first = SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(str(version)) < VERSIONS.index(first):
        raise CniError(Code.VERSION, f"{command} is not in cniVersion {version}: expected {first} or newer")
