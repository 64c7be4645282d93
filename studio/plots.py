"""Figures and their one style: transparent, a set height, no title, text coloured by the page."""

import math
from typing import Any

TRAIN, HELD_OUT, GOOD = "#3a6ea5", "#dd8a2b", "#2f9e6e"
GRID = "rgba(123,135,148,.18)"
MOST_POINTS = 1500
Points = list[dict[str, Any]]


def _figure(y_title: str, height: int) -> Any:
    # Imported when the first figure is drawn: the page itself starts without plotly.
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        height=height,
        autosize=True,
        margin={"l": 60, "r": 16, "t": 40, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12, "color": "#7b8794"},
        legend={"orientation": "h", "y": 1.14, "x": 0},
        hovermode="x unified",
    )
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID}
    figure.update_xaxes(title="step", **axis)
    figure.update_yaxes(title=y_title, **axis)
    return figure


def _series(points: Points, name: str) -> tuple[list[int], list[float]]:
    """Steps and values where it was measured; long runs are thinned evenly."""
    kept = [(p["step"], p[name]) for p in points if p[name] is not None and math.isfinite(p[name])]
    stride = max(1, math.ceil(len(kept) / MOST_POINTS))
    kept = kept[::stride] + ([kept[-1]] if kept and (len(kept) - 1) % stride else [])
    return [step for step, _ in kept], [value for _, value in kept]


def _smoothed(values: list[float], weight: float = 0.85) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smooth, average, mass = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        smooth.append(average / mass)
    return smooth


def loss(points: Points, best_step: int | None, height: int = 330) -> Any:
    """Training and held-out loss on one chart, the best held-out point marked."""
    import plotly.graph_objects as go

    figure = _figure("loss (nats per supervised token)", height)
    steps, values = _series(points, "loss")
    figure.add_trace(
        go.Scatter(
            x=steps, y=values, name="train", line={"color": TRAIN, "width": 1}, opacity=0.6, showlegend=False
        )
    )
    figure.add_trace(
        go.Scatter(x=steps, y=_smoothed(values), name="train (smoothed)", line={"color": TRAIN, "width": 2})
    )
    steps, values = _series(points, "eval_loss")
    figure.add_trace(
        go.Scatter(
            x=steps,
            y=values,
            name="held-out",
            mode="lines+markers",
            line={"color": HELD_OUT, "width": 2},
            marker={"size": 7},
        )
    )
    if best_step in steps:
        figure.add_trace(
            go.Scatter(
                x=[best_step],
                y=[values[steps.index(best_step)]],
                name="best",
                mode="markers",
                marker={"color": GOOD, "size": 14, "symbol": "star"},
            )
        )
    return figure


def perplexity(points: Points, base_loss: float | None, height: int = 330) -> Any:
    """Held-out perplexity, with the base's as a dotted line. exp(loss), derived when drawn."""
    import plotly.graph_objects as go

    figure = _figure("held-out perplexity", height)
    steps, values = _series(points, "eval_loss")
    figure.add_trace(
        go.Scatter(
            x=steps,
            y=[math.exp(min(value, 20)) for value in values],
            name="adapter",
            mode="lines+markers",
            line={"color": HELD_OUT, "width": 2},
            marker={"size": 7},
        )
    )
    if base_loss is not None and steps:
        base = math.exp(min(base_loss, 20))
        figure.add_trace(
            go.Scatter(
                x=[0, max(steps[-1], 1)],
                y=[base, base],
                name=f"base {base:.1f}",
                mode="lines",
                line={"color": "#7b8794", "width": 2, "dash": "dot"},
            )
        )
    figure.update_yaxes(type="log", nticks=6, tickformat="~g", minor_showgrid=False)
    return figure


def small(points: Points, name: str, title: str, height: int = 210) -> Any:
    """One quantity over the steps."""
    import plotly.graph_objects as go

    figure = _figure(title, height)
    steps, values = _series(points, name)
    figure.add_trace(go.Scatter(x=steps, y=values, name=title, line={"color": TRAIN, "width": 1.5}))
    figure.update_layout(showlegend=False, margin={"l": 60, "r": 12, "t": 20, "b": 40})
    return figure
