"""A figure of bar charts, as SVG.  The bars are medians, the whiskers reach from the lowest round to the highest."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

from benchmark.results import METRICS, Spread, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmark.results import Results

_COLUMNS = 2
_WIDTH, _ROW, _TITLE = 490, 22, 34
_HEAD = 24  # pixels for the line that names the machine
_LABELS, _BARS = 120, 260  # pixels for the names, and for the longest whisker
_COLOURS = {
    "flannelpy": "#1f77b4",
    "flannelpy-kernel": "#08519c",
    "interpreted": "#9ecae1",
    "flannelpy-vxlan": "#1f77b4",
    "flannelpy-host-gw": "#1f77b4",
}
_OTHERS = "#b0b0b0"
_STYLE = "text { font: 12px sans-serif; fill: #222 } .title { font-weight: bold } line { stroke: #222 }"


class Chart(NamedTuple):
    """One metric of all contenders."""

    metric: str
    better: str


CHARTS = (
    Chart("tcp-1", "more is better"),
    Chart("tcp-8", "more is better"),
    Chart("udp-1400-goodput", "more is better"),
    Chart("udp-64", "more is better"),
    Chart("rtt-idle-p50", "less is better"),
    Chart("rtt-loaded-p99", "less is better"),
    Chart("cpu", "less is better"),
    Chart("mtu-9000-tcp-1", "more is better"),
    Chart("wire-tcp-1", "more is better"),
    Chart("wire-tcp-8", "more is better"),
    Chart("wire-machine-cpu", "less is better"),
    Chart("wire-udp-1400", "more is better"),
    Chart("wire-rtt-idle-p50", "less is better"),
    Chart("wire-rtt-loaded-p50", "less is better"),
)


def draw(results: Results, subjects: Sequence[str], machine: str) -> str:
    """Return the whole figure; charts of which nothing was measured are left out."""
    charts = [chart for chart in CHARTS if chart.metric in results.values]
    height = _TITLE + _ROW * len(subjects) + 14
    rows = -(-len(charts) // _COLUMNS)
    places = (f"{i % _COLUMNS * _WIDTH} {_HEAD + i // _COLUMNS * height}" for i in range(len(charts)))
    drawn = [
        f'<g transform="translate({place})">{_chart(results, chart, subjects)}</g>'
        for chart, place in zip(charts, places, strict=True)
    ]
    size = f'width="{_COLUMNS * _WIDTH}" height="{_HEAD + rows * height}"'
    head = f'<text class="title" x="10" y="16">{escape(machine)}</text>'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<style>{_STYLE}</style>",
            background,
            head,
            *drawn,
            "</svg>\n",
        ]
    )


def _chart(results: Results, chart: Chart, subjects: Sequence[str]) -> str:
    label, unit = METRICS[chart.metric]
    title = f'<text class="title" x="10" y="20">{escape(f"{label}, {unit}")} ({chart.better})</text>'
    spreads = {name: spread for name in subjects if (spread := results.spread(chart.metric, name))}
    scale = _BARS / (max((spread.high for spread in spreads.values()), default=0) or 1)
    bars = [_bar(name, spread, scale, _TITLE + _ROW * i) for i, (name, spread) in enumerate(spreads.items())]
    return "\n".join([title, *bars])


def _bar(name: str, spread: Spread, scale: float, y: int) -> str:
    width, low, high = (_LABELS + value * scale for value in spread)
    middle = y + 8
    return (
        f'<text x="{_LABELS - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="{_LABELS}" y="{y}" width="{width - _LABELS:.1f}" height="16" fill="{_COLOURS.get(name, _OTHERS)}"/>'
        f'<line x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>'
        f'<text x="{max(width, high) + 6:.1f}" y="{y + 12}">{number(spread.median)}</text>'
    )
