"""Figures and their one style: transparent, a set height, no title, text coloured by the page."""

import math
from typing import Any

from plumbline.planner import figures

TRAIN, HELD_OUT, GOOD = "#3a6ea5", "#dd8a2b", "#2f9e6e"
PLAIN_MARK = {"color": "#7b8794", "size": 11, "symbol": "circle-open"}  # where nothing was gained
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


def loss(
    points: Points, best_step: int | None, height: int = 330, of: str = "nats per supervised token"
) -> Any:
    """Training and held-out loss on one chart, the lowest held-out point marked.

    :param best_step: of that point; 0 is before training
    """
    import plotly.graph_objects as go

    figure = _figure(f"loss ({of})", height)
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
    for number, source in enumerate(sorted({name for point in points for name in point.get("sources", {})})):
        its = [
            {"step": point["step"], "loss": point["sources"].get(source)}
            for point in points
            if point["sources"]
        ]
        source_steps, source_values = _series(its, "loss")
        dash = ("dot", "dash", "dashdot", "longdash")[number % 4]
        line = {"color": HELD_OUT, "width": 1.5, "dash": dash}
        figure.add_trace(go.Scatter(x=source_steps, y=source_values, name=source, mode="lines", line=line))
    if best_step in steps:
        lowest = values[steps.index(best_step)] <= min(values)
        best = ("lowest" if lowest else "best") if best_step else "lowest: before training"
        figure.add_trace(
            go.Scatter(
                x=[best_step],
                y=[values[steps.index(best_step)]],
                name=best,
                # Said at the star: a third entry would not fit above a narrow plot.
                mode="markers+text",
                text=[best],
                textposition="top center" if best_step else "top right",
                cliponaxis=False,
                showlegend=False,
                marker={"color": GOOD, "size": 14, "symbol": "star"} if best_step else PLAIN_MARK,
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
            y=[figures.perplexity(value) for value in values],
            name="adapter",
            mode="lines+markers",
            line={"color": HELD_OUT, "width": 2},
            marker={"size": 7},
        )
    )
    if base_loss is not None and steps:
        base = figures.perplexity(base_loss)
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


def rewards(points: Points, height: int = 330) -> Any:
    """The share of answers that pass, or the preference accuracy."""
    import plotly.graph_objects as go

    tried = any("reward" in point["rewards"] for point in points)
    figure = _figure("answers that pass" if tried else "preference accuracy", height)
    names = ("reward", "eval_reward") if tried else ("rewards/accuracy", "eval_rewards/accuracy")
    for name, label, colour in zip(names, ("train", "held-out"), (TRAIN, HELD_OUT), strict=True):
        its = [{"step": point["step"], "value": point["rewards"].get(name)} for point in points]
        steps, values = _series(its, "value")
        mode = "lines" if label == "train" else "lines+markers"
        line = {"color": colour, "width": 2}
        figure.add_trace(go.Scatter(x=steps, y=values, name=label, mode=mode, line=line))
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    return figure


def lengths(tokens: Any, max_length: int, cut_share: float, height: int = 280) -> Any:
    """How many rows have how many tokens, with the cut as a line."""
    import numpy
    import plotly.graph_objects as go

    figure = _figure("rows", height)
    counts, edges = numpy.histogram(tokens, bins=40)
    centres = (edges[:-1] + edges[1:]) / 2
    names = [f"{low:,.0f} to {high:,.0f} tokens" for low, high in zip(edges, edges[1:], strict=False)]
    figure.add_trace(
        go.Bar(
            x=centres.tolist(),
            y=counts.tolist(),
            width=float(edges[1] - edges[0]),
            marker={"color": TRAIN, "line": {"width": 0}},
            customdata=names,
            hovertemplate="%{customdata}: %{y:,} rows<extra></extra>",
        )
    )
    # Beyond the longest row the line would only squeeze the bars.
    if max_length <= 1.5 * float(tokens.max()):
        text = f"max_length {max_length}: {cut_share:.1%} of rows cut"
        figure.add_vline(max_length, line={"color": HELD_OUT, "dash": "dash", "width": 2})
        right = max_length > float(tokens.max()) / 2
        figure.add_annotation(
            x=max_length,
            y=1.08,
            yref="paper",
            text=text,
            showarrow=False,
            xanchor="right" if right else "left",
        )
    figure.update_layout(showlegend=False, hovermode="closest", bargap=0)
    figure.update_xaxes(title="tokens a row")
    return figure


def small(points: Points, name: str, title: str, height: int = 210) -> Any:
    """One quantity over the steps."""
    import plotly.graph_objects as go

    figure = _figure(title, height)
    steps, values = _series(points, name)
    figure.add_trace(go.Scatter(x=steps, y=values, name=title, line={"color": TRAIN, "width": 1.5}))
    figure.update_layout(showlegend=False, margin={"l": 60, "r": 12, "t": 20, "b": 40})
    return figure
