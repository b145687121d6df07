"""The plugin's commands: what is asked of the delegate, what is remembered of it, and what is undone.

    ADD     subnet.env -> delegate's configuration -> kept -> delegate ADD -> its result;  a failure is undone;
            a bridge of an earlier lease is made anew
    CHECK   what was kept -> delegate CHECK;  an address outside this host's subnet is an error
    DEL     what was kept -> delegate DEL -> forgotten;  nothing kept: done
    GC      DEL of what is kept and not listed, then, whatever became of that, the delegate's own
    STATUS  subnet.env and the plugins are there, then the delegate's own

Files and locks are attachments.py's, other plugins delegate.py's, the bridge bridge.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flanneld_py.agent import subnetfile
from flanneld_py.agent.cni import addresses, bridge
from flanneld_py.agent.cni.attachments import Attachment, Attachments
from flanneld_py.agent.cni.conf import (
    VALID_ATTACHMENTS,
    NetConf,
    asked_outside,
    chain,
    delegate_conf,
    outside,
    with_gateways,
)
from flanneld_py.agent.cni.delegate import Delegates
from flanneld_py.agent.cni.spec import NEWEST, CniError, Code, Json, Request
from flanneld_py.agent.subnetfile import SubnetFile

ASK_FROM = "1.1.0"
"""A delegate may not speak this version, but the one before: their results are of one form."""
INSTEAD = "1.0.0"


class Plugin:
    """One call's work, for one network."""

    def __init__(self, request: Request, conf: NetConf, delegates: Delegates) -> None:
        self._request = request
        self._conf = conf
        self._delegates = delegates
        self._attachments = Attachments(Path(conf.data_dir))

    def answer(self) -> Json | None:
        """Do what is asked; return what is to be printed, if anything. Raises CniError, OSError."""
        commands: dict[str, Callable[[], Json | None]] = {
            "ADD": self._add,
            "CHECK": self._check,
            "DEL": self._delete,
            "GC": self._collect,
            "STATUS": self._status,
        }
        return commands[self._request.command]()

    def _add(self) -> Json:
        subnets = self._subnets()
        if strangers := asked_outside(self._conf, subnets):
            self._refuse(strangers, subnets, "ask for another, or for none")
        conf = self._delegate(subnets)
        bridge.renew(conf, subnets, Path(self._conf.data_dir))
        with self._attachments.made(self._request.container, self._request.interface) as attachment:
            # A second ADD without a DEL must not cost the first its interface, whatever the delegate says to it.
            repeated = attachment.conf() is not None
            try:
                if not repeated:
                    attachment.save(conf)
                result = self._delegates.run("ADD", conf, lock=attachment.lock)
                self._refuse_strangers(result, subnets)
                for after in chain(conf):
                    result = self._delegates.run("ADD", _with_result(after, result), lock=attachment.lock)
            except (CniError, OSError):
                if not repeated:
                    self._undo(attachment, conf)
                raise
            if repeated:
                attachment.save(conf)
        return {**result, "cniVersion": self._conf.version}

    def _undo(self, attachment: Attachment, conf: Json) -> None:
        # Twice: the reference bridge's DEL fails on masquerade that its ADD had not made yet, after removing all else.
        # What cannot be undone now stays on record: the runtime's DEL finds it.
        for _ in range(2):
            with suppress(CniError, OSError):
                self._remove(conf, None, {}, attachment)
                attachment.forget()
                return

    def _remove(self, conf: Json, previous: Json | None, variables: dict[str, str], attachment: Attachment) -> None:
        """Ask every plugin to undo its part, also if one cannot."""
        failures: list[CniError] = []
        for each in (*reversed(chain(conf)), conf):
            try:
                self._delegates.run("DEL", _with_result(each, previous), variables, attachment.lock)
            except CniError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _check(self) -> None:
        previous = self._conf.previous
        if previous is None:
            raise CniError(Code.CONFIG, f'network {self._conf.name}: CHECK needs "prevResult" in the configuration')
        self._refuse_strangers(previous, self._subnets())
        with self._attachments.found(self._request.container, self._request.interface) as attachment:
            conf = attachment.conf() if attachment else None
            if attachment is None or conf is None:
                who = f"{self._request.interface} of container {self._request.container}"
                raise CniError(Code.UNKNOWN_CONTAINER, f"{who} was not added to network {self._conf.name}")
            self._delegates.run("CHECK", _with_result(conf, with_gateways(previous)), lock=attachment.lock)

    def _delete(self) -> None:
        self._delete_one(self._request.container, self._request.interface, {})

    def _delete_one(self, container: str, interface: str, variables: dict[str, str]) -> None:
        with self._attachments.found(container, interface) as attachment:
            if attachment is None:
                return
            if (conf := attachment.conf()) is not None:
                self._remove(conf, self._conf.previous, variables, attachment)
            attachment.forget()

    def _collect(self) -> None:
        valid = self._conf.valid
        if valid is None:
            # An absent list is no empty one: that would be the end of every container's network.
            raise CniError(
                Code.CONFIG, f'network {self._conf.name}: GC needs "{VALID_ATTACHMENTS}" in the configuration'
            )
        failures: list[CniError | OSError] = []
        kept: Json | None = None
        for container, interface in self._attachments.listed():
            try:
                if (conf := self._kept(container, interface)) is None:
                    continue
                kept = conf
                if (container, interface) not in valid:
                    variables = {"CNI_CONTAINERID": container, "CNI_IFNAME": interface, "CNI_NETNS": ""}
                    self._delete_one(container, interface, variables)
            except (CniError, OSError) as error:
                failures.append(error)
        try:
            self._collect_further(valid, kept)
        except (CniError, OSError) as error:
            failures.append(error)
        if failures:
            raise failures[0]

    def _collect_further(self, valid: frozenset[tuple[str, str]], kept: Json | None) -> None:
        """Pass GC on to the delegate, also if there is no subnet: what is to be collected may be of an earlier one."""
        try:
            conf = self._delegate(self._subnets())
        except CniError as error:
            if error.code not in (Code.TRY_AGAIN, Code.SUBNET_FILE):
                raise
            conf = self._delegate(SubnetFile((), 1500, ipmasq=True))
            conf["ipam"] = kept["ipam"] if kept is not None and "ipam" in kept else conf["ipam"]
        if conf["cniVersion"] == self._conf.version:
            listed = [{"containerID": container, "ifname": interface} for container, interface in sorted(valid)]
            self._delegates.run("GC", {**conf, VALID_ATTACHMENTS: listed})

    def _kept(self, container: str, interface: str) -> Json | None:
        """Return what was delegated for an attachment of this network: several may share a directory."""
        with self._attachments.found(container, interface) as attachment:
            conf = attachment.conf() if attachment else None
        return conf if conf is not None and conf.get("name") == self._conf.name else None

    def _status(self) -> None:
        try:
            conf = self._delegate(self._subnets())
        except CniError as error:
            raise CniError(Code.UNAVAILABLE, str(error)) from error
        if conf["cniVersion"] == self._conf.version:
            self._delegates.run("STATUS", conf)

    def _subnets(self) -> SubnetFile:
        path = self._conf.subnet_file
        try:
            return subnetfile.read(Path(path))
        except FileNotFoundError as error:
            why = "this host has no subnet yet; flanneld-py writes it when it has: see its log"
            raise CniError(Code.TRY_AGAIN, f"there is no {path}: {why}") from error
        except ValueError as error:
            raise CniError(Code.SUBNET_FILE, f"{path}: {error}") from error

    def _delegate(self, subnets: SubnetFile) -> Json:
        """Return the delegate's configuration, in a version that it speaks; every plugin in it is there."""
        conf = delegate_conf(self._conf, subnets)
        kind, ipam = str(conf["type"]), conf["ipam"]
        for plugin in (kind, *(str(after.get("type")) for after in chain(conf))):
            self._delegates.find(plugin)
        assert isinstance(ipam, dict)
        self._delegates.find(str(ipam["type"]))
        if ipam["type"] == "host-local" and "dataDir" not in ipam:
            ipam["dataDir"] = addresses.directory(self._conf.name, lambda: bridge.has_ports(conf))
        if self._conf.version == ASK_FROM and ASK_FROM not in self._delegates.versions(kind):
            conf["cniVersion"] = INSTEAD
        return conf

    def _refuse_strangers(self, result: Json, subnets: SubnetFile) -> None:
        if strangers := outside(result, subnets):
            self._refuse(strangers, subnets, "start it again")

    def _refuse(self, strangers: list[str], subnets: SubnetFile, todo: str) -> None:
        own = ", ".join(str(subnet) for _, subnet in subnets.families)
        why = f"not in this host's subnet {own}: no other host would reach the container"
        raise CniError(Code.OUTSIDE, f"{', '.join(strangers)} is {why}; {todo}")


def supported(version: str, versions: tuple[str, ...]) -> Json:
    """Return the answer to VERSION."""
    return {"cniVersion": version if version in versions else NEWEST, "supportedVersions": list(versions)}


def _with_result(conf: Json, previous: Json | None) -> Json:
    """Return a kept configuration with the result that the runtime remembers, in the delegate's version."""
    return conf if previous is None else {**conf, "prevResult": {**previous, "cniVersion": conf.get("cniVersion")}}
