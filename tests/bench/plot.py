"""The plot: requests a second and latencies of GET and SET by number of connections. Same figures, same SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.measure import Result
from tests.bench.report import medians
from tests.bench.rows import CONNECTIONS, GO_1, HOLDFAST, WEBDIS
from tests.bench.wrk import P50_MS, P99_MS, P999_MS, PER_S, Sample

COLOURS = {WEBDIS: "#b0532f", GO_1: "#8c9aa8", HOLDFAST: "#1f6f8b"}
"""Who is shown, from left to right."""

LABELS = {GO_1: f"{GO_1} (nothing on disk)"}

BAR = 0.26


def draw(results: Sequence[Result], file: Path) -> None:
    """Draws what there is of GET and SET.

    Args:
        results: of any rows; those that are not shown are passed over.
        file: to write.
    """
    by_name = {result.row.name: result for result in results}
    with mpl.rc_context({"svg.hashsalt": "holdfast", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9, 6), layout="constrained")
        panels = figure.subplots(2, 2, sharey="row", squeeze=False)
        for column, (name, title) in enumerate((("get", "GET hello"), ("set", "durable SET hello world"))):
            _rates(panels[0][column], by_name, name)
            _latencies(panels[1][column], by_name, name)
            panels[0][column].set_title(title)
        panels[0][0].set_ylabel("requests a second")
        panels[1][0].set_ylabel("ms, p50 to p99.9 (dash: p99)")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(COLOURS), frameon=False)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _places(by_name: dict[str, Result], name: str, target: str) -> list[tuple[float, Sample]]:
    """Where on the axis each median of a target belongs."""
    shift = (list(COLOURS).index(target) - (len(COLOURS) - 1) / 2) * BAR
    found = []
    for number, connections in enumerate(CONNECTIONS):
        result = by_name.get(f"{name}-{connections}")
        if result is not None and target in result.samples:
            found.append((number + shift, medians(result.samples[target])))
    return found


def _rates(axes: Axes, by_name: dict[str, Result], name: str) -> None:
    for target, colour in COLOURS.items():
        places = _places(by_name, name, target)
        axes.bar(
            [x for x, _ in places], [of[PER_S] for _, of in places], BAR, color=colour, label=LABELS.get(target, target)
        )
    axes.yaxis.set_major_formatter("{x:,.0f}")
    _connections(axes)


def _latencies(axes: Axes, by_name: dict[str, Result], name: str) -> None:
    for target, colour in COLOURS.items():
        places = _places(by_name, name, target)
        xs = [x for x, _ in places]
        axes.vlines(xs, [of[P50_MS] for _, of in places], [of[P999_MS] for _, of in places], color=colour, linewidth=6)
        axes.plot(xs, [of[P99_MS] for _, of in places], "_", color="black", markersize=12)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    _connections(axes)


def _connections(axes: Axes) -> None:
    axes.set_xticks(range(len(CONNECTIONS)), [str(connections) for connections in CONNECTIONS])
    axes.set_xlabel("connections")
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
