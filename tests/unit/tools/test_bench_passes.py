from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import pytest

from tests.bench.figures import Figure
from tests.bench.packets import Capacity, Flow
from tests.bench.passes import Pass, Tcp, figures, per_gigabyte
from tests.bench.paths import FLANNEL_UDP, KERNEL, PATHS, PacketPath
from tests.bench.process import Cpu
from tests.bench.streams import CONGESTION_CONTROLS

(USERSPACE,) = [path for path in PATHS if path.name == "userspace"]
(MIXED,) = [path for path in PATHS if path.name == "mixed"]


def measured(
    one: float = 6, four: float = 7, idle: float = 0.1, busy: float = 1, best: float = 100_000, part: float = 0.95
) -> Pass:
    tcp = {name: Tcp(one, four, busy, Cpu(0.5, 0.6)) for name in CONGESTION_CONTROLS}
    return Pass(tcp, idle, Capacity(best, Flow(2 * best, part * best)), 20)


def shown(passes: Mapping[PacketPath, Sequence[Pass]], path: PacketPath) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures("userspace", passes) if figure.subject == path.name}


def missed(passes: Mapping[PacketPath, Sequence[Pass]]) -> set[str]:
    found = shown(passes, USERSPACE).values()
    return {figure.name for figure in found if figure.goal and not figure.goal.met(figure.median)}


def test_a_good_run_meets_every_goal() -> None:
    passes = {KERNEL: [measured(one=10)], USERSPACE: [measured()], FLANNEL_UDP: [measured(best=50_000, idle=0.12)]}
    assert missed(passes) == set()
    assert len([figure for figure in figures("userspace", passes) if figure.goal]) == 2 * 3 + 4


@pytest.mark.parametrize(
    ("ours", "names"),
    [
        (measured(one=5.9), ("TCP BBR, 1 stream, against kernel", "TCP CUBIC, 1 stream, against kernel")),
        (measured(four=5.9), ("TCP BBR, 4 streams, against 1", "TCP CUBIC, 4 streams, against 1")),
        (measured(best=99_000), ("UDP 64 B, best, against flannel",)),
        (measured(part=0.89), ("UDP overload, delivered against best",)),
        (measured(idle=0.13), ("ping",)),
        (measured(busy=2.1), ("TCP BBR, ping beside 1 stream", "TCP CUBIC, ping beside 1 stream")),
        (measured(busy=inf), ("TCP BBR, ping beside 1 stream", "TCP CUBIC, ping beside 1 stream")),
    ],
)
def test_each_goal_is_missed_alone(ours: Pass, names: tuple[str, ...]) -> None:
    flannel = measured(best=50_000, idle=0.12)
    assert missed({KERNEL: [measured(one=10)], USERSPACE: [ours], FLANNEL_UDP: [flannel]}) == set(names)


def test_ratios_are_made_within_a_round() -> None:
    passes = {KERNEL: [measured(one=10), measured(one=2)], USERSPACE: [measured(one=5), measured(one=1)]}
    assert shown(passes, USERSPACE)["TCP CUBIC, 1 stream, against kernel"].samples == (0.5, 0.5)


def test_a_ping_is_held_against_flannels_or_against_a_fixed_limit() -> None:
    alone = shown({USERSPACE: [measured()]}, USERSPACE)["ping"]
    beside = shown({USERSPACE: [measured()], FLANNEL_UDP: [measured(idle=0.2)]}, USERSPACE)["ping"]
    assert (str(alone.goal), str(beside.goal)) == ("<= 0.12", "<= 0.2")


def test_without_a_yardstick_there_is_no_ratio_to_it() -> None:
    assert not [name for name in shown({USERSPACE: [measured()]}, USERSPACE) if "kernel" in name or "flannel" in name]


def test_only_the_paths_that_are_held_to_goals_have_them() -> None:
    passes = {KERNEL: [measured()], MIXED: [measured()], USERSPACE: [measured()]}
    assert {figure.subject for figure in figures("userspace", passes) if figure.goal} == {"userspace"}


def test_the_kernel_has_no_process_to_measure() -> None:
    tcp = dict.fromkeys(CONGESTION_CONTROLS, Tcp(10, 11, 0.03, cpu=None))
    kernel = Pass(tcp, 0.02, Capacity(1e5, Flow(2e5, 1e5)), megabytes=None)
    assert not [name for name in shown({KERNEL: [kernel]}, KERNEL) if "CPU" in name or "memory" in name]


def test_cpu_is_counted_for_what_got_through() -> None:
    assert per_gigabyte(Cpu(1, 2), Cpu(2, 5), 2) == Cpu(0.5, 1.5)
    assert per_gigabyte(Cpu(1, 2), Cpu(2, 5), 0) == Cpu(inf, inf)
