"""Which packet filter is chosen; what enforcing does to real ones is in tests/netns/test_firewall.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from flanneld_py.encap.firewall.enforce import Asked, Enforcer, choose
from flanneld_py.encap.firewall.tools import FirewallError, HostTools


class NoTools:
    """A host with neither nft nor iptables."""

    def has(self, name: str) -> bool:
        return False

    async def run(self, *command: str, stdin: str = "") -> str:
        raise FirewallError(f"there is no command {command[0]}")


@pytest.mark.parametrize(
    ("asked", "has", "kind"),
    [
        ("auto", "nft iptables", "nftables"),
        ("auto", "nft", "nftables"),
        ("auto", "iptables", "iptables"),
        ("auto", "", None),
        ("auto", "nft iptables in_use", "iptables"),
        ("auto", "nft iptables in_use prefer_nft", "nftables"),
        ("auto", "nft iptables in_use ours", "nftables"),
        ("auto", "iptables in_use prefer_nft", "iptables"),
        ("nftables", "nft iptables in_use", "nftables"),
        ("nftables", "iptables", None),
        ("iptables", "nft iptables ours", "iptables"),
        ("iptables", "nft", None),
        ("none", "nft iptables", None),
    ],
)
def test_the_choice(asked: Asked, has: str, kind: str | None) -> None:
    there = has.split()
    choice = choose(
        asked,
        nft="nft" in there,
        iptables="iptables" in there,
        ours_in_nft="ours" in there,
        iptables_in_use="in_use" in there,
        prefer_nft="prefer_nft" in there,
    )
    assert (choice.kind if choice else None) == kind


async def test_a_host_without_any_tool(tmp_path: Path) -> None:
    enforcer = Enforcer(NoTools(), "auto", "", prefer_nft=False, proc=tmp_path)
    assert await enforcer.choose() is None
    assert not enforcer.unwatched()


def test_legacy_tables_are_seen_without_asking_for_them(tmp_path: Path) -> None:
    enforcer = Enforcer(NoTools(), "auto", "", prefer_nft=False, proc=tmp_path)
    (tmp_path / "ip_tables_names").write_text("filter\nnat\n")
    assert enforcer.unwatched()


async def test_a_tool_that_fails_says_what_it_was_asked_and_its_own_words() -> None:
    with pytest.raises(FirewallError, match=r"`sh -c echo no >&2; exit 3` failed: no$"):
        await HostTools().run("sh", "-c", "echo no >&2; exit 3")
    with pytest.raises(FirewallError, match="there is no command no-such-tool; install it"):
        await HostTools().run("no-such-tool")
