"""The benchmark of the CNI plugin's start measures each way to start it."""

from __future__ import annotations

from tests.bench import plugin
from tests.bench.figures import OURS, Daemon, Setting
from tests.lab.lab import DEFAULT_FLANNELD


def test_each_way_to_start_it_has_a_figure_and_the_launcher_a_goal() -> None:
    setting = Setting(1, 0, (Daemon(OURS, DEFAULT_FLANNELD),), lambda line: None)
    figures = {figure.name.removeprefix("CNI plugin starts: "): figure for figure in plugin.run(setting)}
    assert set(figures) == {"the launcher", "pip's script", "python -IS alone", "python alone"}
    assert all(figure.median > 0 for figure in figures.values())
    assert [name for name, figure in figures.items() if figure.goal] == ["the launcher"]
