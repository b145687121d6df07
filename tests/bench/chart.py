"""The figures that people ask for first as a picture: horizontal bars in one SVG file. Pure.

One panel for each benchmark and unit, each with its own scale:

    load, s
    10000 peers programmed   flanneld-py  ██████████|░░  0.91        | is the goal
                             flannel      ████████████████████  6.2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import isfinite

from tests.bench.figures import Figure
from tests.bench.report import show

DRAWN = (("load", "s"), ("joins", "s"), ("throughput", "Gbit/s"))
WIDTH, LABEL, BAR, ROW, TITLE = 880, 480, 320, 22, 30
"""Pixels: the picture, its labels, the longest bar, and the heights of a bar's row and of a title's."""
OURS_COLOUR, OTHER_COLOUR, GOAL_COLOUR = "#0b6fa4", "#9aa5ad", "#c2410c"


def chart(figures: Sequence[Figure], ours: str) -> str:
    """Draw the figures in DRAWN, those whose subject is `ours` in another colour. Empty if there are none."""
    panels = [
        (f"{benchmark}, {unit}", [f for f in figures if (f.benchmark, f.unit) == (benchmark, unit)])
        for benchmark, unit in DRAWN
    ]
    panels = [(title, shown) for title, shown in panels if shown]
    if not panels:
        return ""
    lines: list[str] = []
    top = 10
    for title, shown in panels:
        lines += _panel(title, shown, ours, top)
        top += TITLE + ROW * len(shown)
    height = top + 10
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
            ' font-family="sans-serif" font-size="12" fill="#222">',
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            *lines,
            "</svg>\n",
        ]
    )


def _panel(title: str, figures: Sequence[Figure], ours: str, top: int) -> Iterator[str]:
    yield f'<text x="10" y="{top + 20}" font-weight="bold">{escape(title)}</text>'
    limits = [figure.goal.limit for figure in figures if figure.goal is not None]
    longest = max([figure.median for figure in figures if isfinite(figure.median)] + limits, default=1.0) or 1.0
    for row, figure in enumerate(figures):
        y = top + TITLE + row * ROW
        length = min(figure.median / longest, 1.0) * BAR
        colour = OURS_COLOUR if figure.subject == ours else OTHER_COLOUR
        label = f"{figure.name} - {figure.subject}"
        yield f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
        yield f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{ROW - 6}" fill="{colour}"/>'
        yield f'<text x="{LABEL + BAR + 8}" y="{y + 12}">{show(figure.median)}</text>'
        if figure.goal is not None:
            x = LABEL + figure.goal.limit / longest * BAR
            yield (
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 2}" y2="{y + ROW - 4}" stroke="{GOAL_COLOUR}"'
                f' stroke-width="2"><title>goal {escape(str(figure.goal))}</title></line>'
            )
