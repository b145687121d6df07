"""`flannel-py create|setup|teardown|info`: the netavark plugin, for podman 5. Standard input to an answer, in JSON.

    flannel-py create < network                the network as podman is to keep it
    flannel-py setup NETNS < container         bridge, address, published ports -> interface and addresses
    flannel-py teardown NETNS < container      all of it undone; what was never set up is no error
    flannel-py info                            versions

0   done
1   not done: {"error": why}

It is the CNI plugin (plugin.py) called with other words, and portmap after it, which no runtime runs here. netavark
does not tear down what failed or was killed, nor containers whose namespace is gone: setup finds those and does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shutil import which

from flanneld_py.agent import subnetfile
from flanneld_py.agent.cni.attachments import Attachments
from flanneld_py.agent.cni.conf import chain, netconf
from flanneld_py.agent.cni.delegate import Delegates
from flanneld_py.agent.cni.netavark_spec import (
    API_VERSION,
    NETNS,
    ContainerCall,
    container_call,
    created,
    status,
    variables,
)
from flanneld_py.agent.cni.plugin import Plugin
from flanneld_py.agent.cni.spec import CniError, Code, Json, Request, decoded, text

_OWN = Path("/proc/self/ns/net")


def call(
    arguments: Sequence[str], stdin: Callable[[], bytes], environment: Mapping[str, str]
) -> tuple[int, Json | None]:
    """Answer one call; return the exit code and what is to be printed, if anything."""
    try:
        match arguments:
            case ["info"]:
                return 0, {"version": _version(), "api_version": API_VERSION}
            case ["create"]:
                return 0, created(decoded(stdin(), "the network"))
            case ["setup", netns]:
                asked = container_call("ADD", decoded(stdin(), "what to set up"), netns)
                return 0, _Container(asked, environment).setup()
            case ["teardown", netns]:
                asked = container_call("DEL", decoded(stdin(), "what to tear down"), netns)
                _Container(asked, environment).teardown()
                return 0, None
            case _:
                raise CniError(Code.ENVIRONMENT, "expected create, setup NETNS, teardown NETNS or info")
    except (CniError, OSError) as error:
        return 1, {"error": str(error)}


class _Container:
    """A container's interface in a network."""

    def __init__(self, asked: ContainerCall, environment: Mapping[str, str]) -> None:
        self._asked = asked
        self._request = asked.request
        self._conf = netconf(asked.request.conf)
        self._environment = environment
        self._attachments = Attachments(Path(asked.directory))

    def setup(self) -> Json:
        """Make it, and return netavark's status. Raises CniError, OSError."""
        request = self._request
        _check_namespace(request.netns)
        self._check_needs()
        former = self._kept(request.container, request.interface)
        if former == request.netns:
            todo = "if a call was broken off, remove the container and make it anew"
            raise CniError(
                Code.CONFIG, f"{request.interface} of container {request.container} is set up already; {todo}"
            )
        if former is not None:
            self._remove(request)
        try:
            result = self._plugin(request).answer()
        except CniError:
            if not self._collect():
                raise
            result = self._plugin(request).answer()
        return status(request.interface, result or {})

    def teardown(self) -> None:
        """Undo it. Raises CniError, OSError."""
        self._remove(self._request)

    def _check_needs(self) -> None:
        """Refuse what would fail half-way, or not be what was asked for."""
        if chain(self._conf.delegate) and which("iptables") is None:
            raise CniError(Code.DELEGATE, "a published port needs iptables, which is not installed (Debian: iptables)")
        path = Path(self._conf.subnet_file)
        if not path.exists() and not _is_all_users():
            why = "rootless podman has a network of its own, outside the overlay"
            raise CniError(Code.TRY_AGAIN, f"there is no {path} here: {why}; run podman as root")
        with suppress(OSError, ValueError):  # The plugin says what is wrong with it.
            if self._asked.wants_ipv6 and all(network.version == 4 for network, _ in subnetfile.read(path).families):
                raise CniError(Code.CONFIG, f"the network is --ipv6, but this host's lease has no IPv6 ({path})")

    def _remove(self, request: Request) -> None:
        netns = request.netns if _is_namespace(request.netns) else ""
        self._plugin(replace(request, command="DEL", netns=netns)).answer()

    def _collect(self) -> bool:
        """Remove what is left of containers whose namespace is gone; return whether there was any."""
        gone = [
            (container, interface)
            for container, interface in self._attachments.listed()
            if (netns := self._kept(container, interface)) and not Path(netns).exists()
        ]
        for container, interface in gone:
            with suppress(CniError):
                self._remove(replace(self._request, container=container, interface=interface, netns=""))
        return bool(gone)

    def _kept(self, container: str, interface: str) -> str | None:
        """Return the namespace that an attachment was made in; None if there is none."""
        with self._attachments.found(container, interface) as found:
            conf = found.conf() if found else None
        return None if conf is None else text(conf, NETNS)

    def _plugin(self, request: Request) -> Plugin:
        delegates = Delegates(request.path, variables(request, self._environment))
        return Plugin(request, self._conf, delegates)


def _check_namespace(netns: str) -> None:
    if not _is_namespace(netns):
        raise CniError(Code.CONFIG, f"{netns} is no network namespace: the container has ended, or never started")
    if _OWN.samefile(netns):
        raise CniError(Code.CONFIG, f"{netns} is the host's own network namespace: expected a container's")


def _is_namespace(netns: str) -> bool:
    try:
        return Path(netns).stat().st_dev == _OWN.stat().st_dev
    except OSError:
        return False


def _is_all_users() -> bool:
    """Tell whether this user namespace is the machine's own."""
    return Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", "4294967295"]


def _version() -> str:
    from importlib.metadata import distributions  # Slow, and only here.

    # The launcher has no search path: beside the package, or where its sources are.
    here = Path(__file__).resolve()
    found = distributions(name="flanneld-py", path=[*sys.path, str(here.parents[3]), str(here.parents[2])])
    return next((each.version for each in found), "unknown")
