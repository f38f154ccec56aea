"""Figures of the report: JSON of report.json -> SVG text; equal input gives equal bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = {
    "popularity": "#8c8c8c", "zero_shot": "#c7a76c", "shuffled": "#b07aa1", "llm": "#d1653a",
    "crm_row": "#7fb0d6", "crm": "#2f6fa8", "crm_calibrated": "#2f6fa8", "fused": "#2b8a5b",
}
NAMES = {
    "popularity": "popularity", "zero_shot": "zero-shot LLM", "shuffled": "LLM, shuffled gates",
    "llm": "LLM", "crm_row": "CRM, row history", "crm": "CRM, slate history",
    "crm_calibrated": "CRM, calibrated", "fused": "fused",
}
STYLE = {
    "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e6e6", "axes.axisbelow": True, "axes.edgecolor": "#999999",
    "xtick.color": "#444444", "ytick.color": "#444444", "legend.frameon": False,
    "svg.hashsalt": "lifelora", "figure.constrained_layout.use": True,
}
_ORDER = ("zero_shot", "popularity", "shuffled", "llm", "crm_row", "crm", "fused")
_SMOOTHED_POINTS = 40


def auc_figure(tables: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Draw each model's AUC with its interval, one panel for each (title, table)."""
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(tables), (4.6, 2.7), sharex=True)
        for panel, (title, table) in zip(panels, tables, strict=True):
            _auc_panel(panel, table["models"])
            panel.set_title(f"{title}: {table['num_rows']:,} rows, {table['num_users']:,} users",
                            fontsize=9)
        return _svg(figure)


def _auc_panel(panel: Axes, models: Mapping[str, Any]) -> None:
    shown = [name for name in _ORDER if models.get(name, {}).get("auc")]
    for place, name in enumerate(shown):
        interval = models[name]["auc"]
        panel.plot([interval["low"], interval["high"]], [place, place], lw=5, alpha=0.35,
                   color=COLOURS[name], solid_capstyle="round")
        panel.plot(interval["value"], place, "o", ms=6, color=COLOURS[name])
        panel.annotate(f"{interval['value']:.3f}", (interval["value"], place), (0, 6),
                       textcoords="offset points", ha="center", fontsize=8)
    panel.set_yticks(range(len(shown)), [NAMES[name] for name in shown])
    panel.set_ylim(-0.5, len(shown) - 0.3)
    panel.axvline(0.5, color="#999999", lw=1, ls=":")
    panel.set_xlabel("AUC, 95% interval over users")


def curve_figure(curve: Sequence[Mapping[str, float]]) -> str:
    """Draw losses over steps and, if they were logged, how the gates moved."""
    names = sorted({name for row in curve for name, value in row.items()
                    if isinstance(value, int | float)})
    losses = [name for name in names if "loss" in name]
    gates = [name for name in names if "entropy" in name or "variation" in name or "load" in name]
    groups = [(title, group) for title, group in
              (("loss", losses), ("gates over training", gates)) if group]
    with mpl.rc_context(STYLE):
        figure, panels = _panels(max(1, len(groups)), (4.6, 2.5))
        for panel, (title, group) in zip(panels, groups, strict=False):
            for number, name in enumerate(group):
                _curve(panel, curve, name, f"C{number}")
            panel.set_title(title, fontsize=9)
            panel.set_xlabel("step")
            panel.legend(fontsize=8)
            if group is gates:
                panel.set_ylim(0, 1.05)
        return _svg(figure)


def _curve(panel: Axes, curve: Sequence[Mapping[str, float]], name: str, colour: str) -> None:
    rows = [(place, row) for place, row in enumerate(curve) if name in row]
    steps = np.array([row.get("step", place) for place, row in rows])
    values = np.array([row[name] for _, row in rows])
    width = max(1, len(values) // _SMOOTHED_POINTS)
    ones = np.ones(width)
    smooth = np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")
    panel.plot(steps, values, color=colour, alpha=0.25, lw=0.8)
    panel.plot(steps, smooth, color=colour, lw=1.6, label=name.replace("_", " "))


def learning_figure(points: Sequence[Mapping[str, float]]) -> str:
    """Draw the language model's AUC against the training labels that it had learned."""
    with mpl.rc_context(STYLE):
        figure, (panel,) = _panels(1, (5.4, 2.9))
        panel.plot([point["labels"] for point in points], [point["auc"] for point in points], "o-",
                   ms=4, lw=1.2, color=COLOURS["llm"])
        panel.axhline(0.5, color="#999999", lw=1, ls=":")
        panel.set(xlabel="training labels learned before", ylabel="AUC on the next ones", xlim=0)
        return _svg(figure)


def reliability_figure(reliability: Mapping[str, Any]) -> str:
    """Draw positive rate against predicted probability; a dot's area is its share of rows."""
    with mpl.rc_context(STYLE):
        figure, (panel,) = _panels(1, (4.2, 3.6))
        panel.plot([0, 1], [0, 1], color="#999999", lw=1, ls=":")
        for name in ("crm", "llm", "fused"):
            points = reliability.get(name, [])
            predicted = [point["probability"] for point in points]
            rates = [point["rate"] for point in points]
            rows = np.array([point["rows"] for point in points], float)
            panel.plot(predicted, rates, color=COLOURS[name], lw=1.2, label=NAMES[name])
            panel.scatter(predicted, rates, s=6 + 300 * rows / max(1, rows.sum()),
                          color=COLOURS[name], alpha=0.55, lw=0)
        panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability",
                  ylabel="share of positives")
        panel.legend(fontsize=8)
        return _svg(figure)


def history_length_figure(buckets: Sequence[Mapping[str, Any]]) -> str:
    """Draw the models' AUC for each length of history."""
    shown = ("popularity", "llm", "crm", "fused")
    with mpl.rc_context(STYLE):
        figure, (panel,) = _panels(1, (6.4, 2.9))
        for offset, name in zip(np.linspace(-0.24, 0.24, len(shown)), shown, strict=True):
            points = [(place + offset, bucket["auc"][name]) for place, bucket in enumerate(buckets)
                      if bucket["auc"].get(name)]
            for x, interval in points:
                panel.plot([x, x], [interval["low"], interval["high"]], lw=4, alpha=0.35,
                           color=COLOURS[name], solid_capstyle="round")
            panel.plot([x for x, _ in points], [each["value"] for _, each in points], "o", ms=5,
                       color=COLOURS[name], label=NAMES[name])
        labels = [f"{each['history_length']}\n{each['num_rows']:,} rows" for each in buckets]
        panel.set_xticks(range(len(buckets)), labels)
        panel.set_xlim(-0.5, max(0.5, len(buckets) - 0.5))
        panel.axhline(0.5, color="#999999", lw=1, ls=":")
        panel.set(ylabel="AUC")
        panel.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return _svg(figure)


def gates_figure(heat_map: Sequence[Sequence[float]], gates: Mapping[str, Any]) -> str:
    """Draw users x adapters (users ordered by their strongest adapter), and the adapters' load."""
    weights_UK = np.array(heat_map)
    order = np.lexsort((-weights_UK.max(axis=1), weights_UK.argmax(axis=1)))
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(8.2, 3.6))
        left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
        image = left.imshow(weights_UK[order], aspect="auto", cmap="viridis",
                            interpolation="nearest", vmin=0)
        figure.colorbar(image, ax=left, label="mean weight over gates")
        left.set(xlabel="adapter", ylabel="user (one line each)", yticks=[],
                 xticks=range(weights_UK.shape[1]), title="who gets which adapter")
        load = gates["load"]
        right.bar(range(len(load)), load, color="#2b8a5b")
        right.axhline(1 / len(load), color="#999999", lw=1, ls=":")
        right.set(xlabel="adapter", ylabel="mean weight", xticks=range(len(load)),
                  title="load (dotted: even)")
        return _svg(figure)


def _panels(count: int, size: tuple[float, float], *, sharex: bool = False) -> tuple[Figure, Any]:
    figure = Figure(figsize=(size[0] * count, size[1]))
    return figure, figure.subplots(1, count, squeeze=False, sharex=sharex)[0]


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().decode()


NIGHT_MODELS = ("crm_calibrated", "fused")


def nights_figure(nights: Sequence[Mapping[str, Any]]) -> str:
    """Draw, of each judged night with intervals, the AUC of the live release on the day that came,
    and the difference, challenger - live; the marker is full where the challenger became live.
    """
    with mpl.rc_context(STYLE):
        figure, panels = _panels(2, (4.8, 2.8))
        for panel, name in zip(panels, ("day", "difference"), strict=True):
            for number, model in enumerate(NIGHT_MODELS):
                _draw_nights(panel, nights, name, model, 0.2 * number - 0.1)
            panel.set_xticks(range(len(nights)), [str(night["number"]) for night in nights])
            panel.set_xlabel("night")
            panel.legend(handles=[
                Line2D([], [], marker="o", lw=0, color=COLOURS[each], label=NAMES[each])
                for each in NIGHT_MODELS
            ], fontsize=8)
        panels[0].set_ylabel("AUC of the day, live")
        panels[1].set_ylabel("AUC, challenger - live")
        panels[1].axhline(0.0, color="#999999", lw=1, ls=":")
        return _svg(figure)


def _draw_nights(
    panel: Any, nights: Sequence[Mapping[str, Any]], name: str, model: str, offset: float
) -> None:
    for place, night in enumerate(nights):
        interval, at = (night[name] or {}).get(model, {}).get("auc"), place + offset
        if interval is None:
            continue
        panel.plot([at, at], [interval["low"], interval["high"]], lw=4, alpha=0.35,
                   color=COLOURS[model], solid_capstyle="round")
        fill = COLOURS[model] if night["kind"] == "promoted" else "white"
        panel.plot(at, interval["value"], "o", ms=6, color=COLOURS[model], mfc=fill)
