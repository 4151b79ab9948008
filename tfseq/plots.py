"""Pictures with matplotlib, through its object interface: no global state, no window, safe in a server and in threads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfseq.checks import at_least
from tfseq.data.music import LOWEST, check_roll
from tfseq.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLACK_KEYS = (1, 3, 6, 8, 10)  # pitch classes
_GIVEN, _COMPOSED = "#8a8f98", "#1f5fa8"
_STATES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#6b6b6b")
"""Colours that stay apart for the colour-blind: Okabe and Ito 2008, with grey for black."""
_SERIES = ("#1f5fa8", "#d1662a", "#3a8f5c", "#8a4fa3", "#7a6a3a", "#4f9fb3")


def piano_roll(
    roll: np.ndarray | Sequence[np.ndarray],
    path: str | Path | None = None,
    *,
    title: str = "",
    prefix_steps: int | None = None,
    step_name: str = "step",
) -> Figure:
    """Draws one or several piano rolls, one above another, cropped to the pitches in use; consecutive steps are one bar.

    Args:
        roll: `[T, 88]` in {0, 1}, or several of them.
        path: the picture file, format by its suffix; not written where None.
        title: heading of the figure.
        prefix_steps: how many first steps were given; they are drawn in another colour on a shaded ground.
        step_name: what one step is, for the time axis, for example `"quarter note"`.

    Returns:
        The figure.
    """
    several = isinstance(roll, (list, tuple)) or np.ndim(roll) == 3
    rolls = [check_roll(np.asarray(each)) for each in (roll if several else [roll])]
    if not rolls or not any(map(len, rolls)):
        raise ValueError(f"`roll` must have at least one roll with at least one step; received {len(rolls)} without any.")
    if prefix_steps is not None and not 0 <= prefix_steps <= max(map(len, rolls)):
        raise ValueError(f"`prefix_steps` must lie in [0, {max(map(len, rolls))}]; received {prefix_steps}.")
    used = np.flatnonzero(np.any([each.any(axis=0) for each in rolls], axis=0))
    low, high = (int(used[0]) - 2, int(used[-1]) + 2) if used.size else (37, 51)
    num_steps = max(map(len, rolls))
    figure = _figure(min(4.0 + 0.1 * num_steps, 24.0), 0.7 + len(rolls) * (0.9 + 0.05 * (high - low)))
    for i, (axes, each) in enumerate(zip(figure.subplots(len(rolls), sharex=True, squeeze=False)[:, 0], rolls, strict=True)):
        _draw_roll(axes, each, prefix_steps or 0)
        axes.set(xlim=(0, num_steps), ylim=(low - 0.5, high + 0.5))
        axes.set_xticks(np.arange(0, num_steps + 1, 2 ** max(0, math.ceil(math.log2(num_steps / 16)))))  # beats, bars
        if len(rolls) > 1:
            axes.set_title(str(i + 1), loc="left", fontsize=10, color="#5f6368")
        if prefix_steps and i == 0:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.2, handlelength=1.2)
    axes.set_xlabel(f"time in {step_name}s")
    return _finish(figure, title, path)


def roll_notes(roll: np.ndarray, hold: bool = True) -> list[tuple[int, int, int]]:
    """Roll `[T, 88]` -> its notes (first step, number of steps, column), by column and time.

    With `hold` a run of consecutive steps is one note; without it every step is a note of its own.
    """
    if not hold:
        return [(int(t), 1, int(key)) for key, t in np.argwhere(np.asarray(roll).T > 0)]
    padded = np.pad(np.asarray(roll) > 0, ((1, 1), (0, 0))).astype(np.int8)
    change = np.diff(padded, axis=0).T  # 1 where a note begins, -1 after its last step
    begins, ends = np.argwhere(change == 1), np.argwhere(change == -1)
    return [(int(begin), int(end - begin), int(key)) for (key, begin), (_, end) in zip(begins, ends, strict=True)]


def curves(
    history: Mapping[str, Sequence[float]],
    path: str | Path | None = None,
    *,
    title: str = "",
    ylabel: str = "nats per step",
) -> Figure:
    """Training curves over epochs; `val_NAME` is drawn dashed in the colour of `NAME`, its best epoch is marked.

    Args:
        history: name -> one value per epoch, as in Keras's `History.history`; all in the unit of `ylabel`. Missing
            values are NaN.
        path: the picture file; not written where None.
        title: heading of the figure.
        ylabel: the unit; lower is better, as for every loss.

    Returns:
        The figure.
    """
    from matplotlib.ticker import MaxNLocator

    if not history:
        raise ValueError("`history` must have at least one curve; received none.")
    figure = _figure(7.0, 4.2)
    axes = figure.subplots()
    names = list(dict.fromkeys(name.removeprefix("val_") for name in history))
    top, bottom = -np.inf, np.inf
    for name, values in history.items():
        y = np.asarray(values, float)
        epochs = np.arange(1, len(y) + 1)
        base = name.removeprefix("val_")
        colour = _SERIES[names.index(base) % len(_SERIES)]
        validation = name != base
        words = base.replace("_", " ")
        label = f"{words}, validation" if validation else f"{words}, training" if f"val_{base}" in history else words
        known = np.isfinite(y)  # a curve runs through the epochs that have a value: validation may be rarer than training
        style = "--" if validation else "-"
        axes.plot(epochs[known], y[known], style, color=colour, lw=1.8, label=label, marker="." if known.sum() == 1 else "")
        top = max(top, y[known][known.sum() // 20 :].max(initial=-np.inf))
        bottom = min(bottom, y[known].min(initial=np.inf))
        if validation and np.isfinite(y).any():
            best = int(np.nanargmin(np.where(np.isfinite(y), y, np.nan)))
            axes.plot(epochs[best], y[best], "o", color=colour, ms=5)
            axes.annotate(
                f"{y[best]:.3f}", (epochs[best], y[best]), xytext=(0, 7), textcoords="offset points", ha="center", color=colour
            )
    if np.isfinite(top) and top > bottom:  # the first twentieth of a run would flatten all that comes after it
        axes.set_ylim(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom))
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e3e5e8", lw=0.8)
    axes.legend(frameon=False)
    return _finish(figure, title, path)


def state_path(
    x: np.ndarray,
    states: np.ndarray,
    probs: np.ndarray | None = None,
    path: str | Path | None = None,
    *,
    title: str = "",
    step_name: str = "step",
    means: np.ndarray | None = None,
) -> Figure:
    """Draws a series over bands in the colours of its decoded states, and below it their probabilities, stacked.

    Args:
        x: the series `[T]` or `[T, D]`; NaN, where a value is missing, is a gap.
        states: the state of each step `[T]`, whole numbers from 0.
        probs: probabilities of the states `[T, K]`; without them the lower panel is left out.
        path: the picture file, format by its suffix; not written where None.
        title: heading of the figure.
        step_name: what one step is, for the time axis, for example `"year"`.
        means: the level of each state, `[K]` or `[K, D]`; that of the decoded state is drawn with the series.

    Returns:
        The figure.

    Raises:
        ValueError: on shapes that do not fit together, states that are no whole numbers from 0, or values that are no
            probabilities.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    series = np.asarray(x, float)
    series = series[:, None] if series.ndim == 1 else series
    if series.ndim != 2 or not series.size:
        raise ValueError(f"`x` must be a series [T] or [T, D] with at least one step; received shape {list(np.shape(x))}.")
    num_steps = len(series)
    states, probs, means = _checked_path(series, states, probs, means)
    num_states = max(int(states.max()) + 1, 0 if probs is None else probs.shape[1], 0 if means is None else len(means))
    colours = _state_colours(num_states)
    ratios = [1.0] if probs is None else [2.0, 1.0]
    figure = _figure(min(7.0 + 0.015 * num_steps, 14.0), 3.2 if probs is None else 4.8)
    panels = figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    _draw_features(panels[0], series, None if means is None else means[states])
    # one picture, since a band for each visit would be slow in long series
    bands: dict = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": num_states - 0.5, "interpolation": "nearest"}
    place = (-0.5, num_steps - 0.5, *panels[0].get_ylim())
    panels[0].imshow(states[None], extent=place, aspect="auto", alpha=0.4, zorder=0, **bands)
    if probs is not None:
        edges = np.arange(num_steps + 1) - 0.5
        panels[1].stackplot(edges, np.concatenate([probs, probs[-1:]]).T, colors=colours, step="post", lw=0)
        panels[1].set(ylim=(0, 1), ylabel="probability", yticks=(0, 0.5, 1))
    panels[-1].set(xlim=place[:2], xlabel=f"time in {step_name}s")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        handles=[Patch(color=colour, label=str(k)) for k, colour in enumerate(colours)],
        title="state",
        loc="outside right upper",
        ncols=-(-num_states // (10 if probs is None else 16)),
        fontsize="medium" if num_states <= 8 else "small",
        frameon=False,
        handlelength=1.2,
    )
    return _finish(figure, title, path)


def _checked_path(
    series: np.ndarray, states: np.ndarray, probs: np.ndarray | None, means: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """`states` `[T]`, `probs` `[T, K]` and `means` `[K, D]` as arrays; ValueError where they do not fit the series `[T, D]`."""
    num_steps, num_features = series.shape
    states = np.asarray(states)
    if states.shape != (num_steps,) or states.dtype.kind not in "iu" or states.min() < 0:
        raise ValueError(
            f"`states` must be whole numbers from 0, one for each of the {num_steps} steps of `x`; "
            f"received {states.dtype} of shape {list(states.shape)}{f', the least {states.min()}' if states.size else ''}."
        )
    least = int(states.max()) + 1
    if probs is not None:
        probs = np.asarray(probs, float)
        if probs.ndim != 2 or len(probs) != num_steps or probs.shape[1] < least:
            raise ValueError(
                f"`probs` must be [T, K] = [{num_steps}, at least {least}], a column per state; received {list(probs.shape)}."
            )
        sums = probs.sum(1)
        if not ((np.abs(sums - 1.0) < 1e-3).all() and probs.min() > -1e-3):  # float32, summed over many states
            step = int(np.abs(sums - 1.0).argmax())
            raise ValueError(
                f"`probs` must be at least 0 and sum to 1 in each row; row {step} sums to {sums[step]:.6g}, and the least is "
                f"{probs.min():.6g}. Are they logarithms?"
            )
    if means is not None:
        means = np.asarray(means, float)
        means = means[:, None] if means.ndim == 1 else means
        most = math.inf if probs is None else probs.shape[1]
        if means.ndim != 2 or means.shape[1] != num_features or not (least if probs is None else most) <= len(means) <= most:
            rows = f"at least {least}" if probs is None else str(most)
            raise ValueError(
                f"`means` must be [K, D] = [{rows}, {num_features}], a row for each state; received {list(means.shape)}."
            )
    return states, probs, means


def _state_colours(num_states: int) -> list:
    """A colour for each state; beyond the eight that stay apart, a scale on which neighbours are alike."""
    if num_states <= len(_STATES):
        return list(_STATES[:num_states])
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 1.0, num_states)))


# Series, trajectories, recordings --------------------------------------------------------------------------------------

_LEVELS = (0.5, 0.8, 0.95)
_MOST_PANELS = 8
_MOST_TILES = 100


def forecast(
    history: np.ndarray,
    samples: np.ndarray,
    path: str | Path | None = None,
    *,
    names: Sequence[str] = (),
    levels: Sequence[float] = _LEVELS,
    title: str = "",
    step_name: str = "step",
    history_steps: int | None = None,
) -> Figure:
    """Draws a series and what may come after it: the median of samples, and the central bands that hold a share of them.

    A band of level p reaches from quantile (1 - p) / 2 to (1 + p) / 2 of the samples (`numpy.quantile`). Bands and median begin
    at the last value of the series, where it is known.

    Args:
        history: the series `[T, D]` or `[T]`; NaN, where a value is missing, is a gap.
        samples: continuations of it `[S, H, D]` or `[S, H]`.
        path: the picture file, format by its suffix; not written where None.
        names: of the features; they are numbered where there are none. Of more than eight the first eight are drawn.
        levels: shares of the samples that bands hold, each in (0, 1).
        title: heading of the figure.
        step_name: what one step is, for the time axis, for example `"year"`.
        history_steps: how many last steps of the series are drawn; where None, five for each step to come, or 100.

    Returns:
        The figure.

    Raises:
        ValueError: on shapes that do not fit together, samples that are not finite, or levels outside (0, 1).
    """
    from matplotlib.ticker import MaxNLocator

    series, samples = np.asarray(history, float), np.asarray(samples, float)
    series = series[:, None] if series.ndim == 1 else series
    samples = samples[..., None] if samples.ndim == 2 else samples
    if series.ndim != 2 or samples.ndim != 3 or series.shape[1] != samples.shape[2] or not samples.size:
        raise ValueError(
            "`history` must be [T, D] and `samples` [S, H, D], at least one sample of a step; received shapes "
            f"{list(np.shape(history))} and {list(samples.shape)}."
        )
    if not np.isfinite(samples).all():
        place = np.argwhere(~np.isfinite(samples))[0].tolist()
        raise ValueError(
            f"`samples` must be finite; received {samples[tuple(place)]} at index {place}. Did the training diverge?"
        )
    if not levels or not all(0.0 < level < 1.0 for level in levels):
        raise ValueError(f"`levels` must be numbers between 0 and 1; received {list(levels)}.")
    num_past, num_future = len(series), samples.shape[1]
    first = num_past - min(num_past, max(5 * num_future, 100) if history_steps is None else history_steps)
    figure, panels = _feature_panels(series.shape[1], num_past - first + num_future, names)
    for d, axes in enumerate(panels):
        _draw_line(axes, np.arange(first, num_past), series[first:, d], "#23272e", label="given")
        start = [[series[-1, d]]] if num_past and np.isfinite(series[-1, d]) else []
        times = np.arange(num_past - len(start), num_past + num_future)
        paths = np.concatenate([np.repeat(start, len(samples), 0), samples[..., d]], 1) if start else samples[..., d]
        for i, level in enumerate(sorted(levels, reverse=True)):
            low, high = np.quantile(paths, ((1.0 - level) / 2.0, (1.0 + level) / 2.0), axis=0)
            shade = 0.16 + 0.34 * (i + 1) / len(levels)
            axes.fill_between(
                times, low, high, color=_mixed(_COMPOSED, shade), lw=0, zorder=1 + 0.1 * i, label=f"{100 * level:.4g} %"
            )
        _draw_line(axes, times, np.quantile(paths, 0.5, axis=0), _COMPOSED, label="median")
        axes.axvline(num_past - 0.5, color="#9aa0a6", lw=0.8, ls=":", zorder=0)
        axes.margins(x=0.01)
    panels[-1].set_xlabel(f"time in {step_name}s")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(figure, panels[0])
    return _finish(figure, title, path)


def series(
    x: np.ndarray | Sequence[np.ndarray],
    path: str | Path | None = None,
    *,
    names: Sequence[str] = (),
    title: str = "",
    step_name: str = "step",
    prefix_steps: int | None = None,
) -> Figure:
    """Draws one or several series over each other, a panel for each feature.

    Args:
        x: a series `[T, D]` or `[T]`, or a list of them; NaN is a gap.
        path, names, title, step_name: as in `forecast`.
        prefix_steps: how many first steps were given; they are drawn in another colour.

    Returns:
        The figure.

    Raises:
        ValueError: there is no step, or the series have different features.
    """
    from matplotlib.ticker import MaxNLocator

    several = [np.asarray(each, float) for each in (x if isinstance(x, (list, tuple)) or np.ndim(x) == 3 else [x])]
    several = [each[:, None] if each.ndim == 1 else each for each in several]
    if not several or any(each.ndim != 2 or each.shape[1:] != several[0].shape[1:] for each in several) or not several[0].size:
        raise ValueError(
            f"`x` must be series [T, D] with the same D and a step; received shapes {[list(e.shape) for e in several]}."
        )
    longest = max(map(len, several))
    figure, panels = _feature_panels(several[0].shape[1], longest, names)
    inks = list(_SERIES) if len(several) <= len(_SERIES) else [_COMPOSED]
    width = 1.0 if len(several) <= len(_SERIES) else 0.5
    given = prefix_steps or 0
    for d, axes in enumerate(panels):
        for i, each in enumerate(several):
            if given:
                _draw_line(axes, np.arange(given), each[:given, d], _GIVEN, label="_" if i else "given", lw=1.4, zorder=4)
            _draw_line(axes, np.arange(len(each)), each[:, d], inks[i % len(inks)], label=str(i + 1), lw=width)
        axes.margins(x=0.01)
    panels[-1].set_xlabel(f"time in {step_name}s")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    if 1 < len(several) <= len(_SERIES):
        _legend_above(figure, panels[0])
    return _finish(figure, title, path)


def strokes(
    x: np.ndarray | Sequence[np.ndarray],
    path: str | Path | None = None,
    *,
    title: str = "",
    prefix_steps: int | None = None,
    columns: int | None = None,
) -> Figure:
    """Draws trajectories of a pen side by side, each in its own size, up to a hundred: ways with the pen down are lines.

    Args:
        x: pen, dx, dy of each point `[T, 3]`, or a list of them: the pen is lifted after a point where the first is above 0.5;
            dx and dy are the way from the point before. The pen is up before the first.
        path: the picture file, format by its suffix; not written where None.
        title: heading of the figure.
        prefix_steps: how many first points were given; they are drawn in another colour.
        columns: trajectories side by side; where None, as many as make the figure about square.

    Returns:
        The figure.

    Raises:
        ValueError: `x` has another shape, or values that are not finite.
    """
    from matplotlib.collections import LineCollection

    several = [np.asarray(each, float) for each in (x if isinstance(x, (list, tuple)) or np.ndim(x) == 3 else [x])][:_MOST_TILES]
    for each in several:
        if each.ndim != 2 or each.shape[1] != 3 or not np.isfinite(each).all():
            raise ValueError(f"`x` must be finite numbers [T, 3], pen, dx, dy of each point; received shape {list(each.shape)}.")
    if not any(map(len, several)):
        raise ValueError("`x` must have at least one trajectory with a point; received none.")
    points = [each[:, 1:].cumsum(0) for each in several]
    spans = np.array([np.ptp(p, axis=0) for p in points if len(p)]).max(0).clip(min=1e-9)
    ratio = float(np.clip(spans[0] / spans[1], 0.25, 8.0))
    if columns is None:
        columns = min(len(several), max(1, round(math.sqrt(len(several) / ratio * 1.3))))
    at_least(1, columns=columns)
    rows = math.ceil(len(several) / columns)
    width = min(12.0, max(1.4, 1.3 * ratio) * columns)
    figure = _figure(max(width, 2.0), min(max(width / columns / ratio, 0.6) * rows + 0.4 * bool(title), 40.0))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, each, place in zip(grid, several, points, strict=False):
        lifted = each[:, 0] > 0.5
        down = np.flatnonzero(~lifted[:-1])  # a way is drawn where the pen stays down after the point it starts from
        inks = np.where(np.arange(len(each)) < (prefix_steps or 0), _GIVEN, _COMPOSED)
        ways = np.stack([place[down], place[down + 1]], 1)
        axes.add_collection(LineCollection(list(ways), colors=list(inks[down + 1]), linewidths=1.4, capstyle="round"))
        alone = np.flatnonzero(np.diff(np.flatnonzero(np.r_[True, lifted])) == 1)  # strokes of one point
        dots = np.flatnonzero(np.r_[True, lifted])[alone]
        axes.scatter(*place[dots].T, s=5, c=list(inks[dots]), lw=0)
        axes.autoscale_view()
    for axes in grid:
        axes.set_aspect("equal", adjustable="datalim" if rows * columns > 1 else "box")
        axes.axis("off")
    return _finish(figure, title, path)


def recordings(
    x: np.ndarray | Sequence[np.ndarray],
    rate: int,
    path: str | Path | None = None,
    *,
    title: str = "",
) -> Figure:
    """Draws the samples of recordings over time, one below another.

    Args:
        x: samples `[N]`, or frames of them `[T, F]`, or a list of these.
        rate: samples a second.
        path, title: as in `forecast`.

    Returns:
        The figure.

    Raises:
        ValueError: there is none.
    """
    at_least(1, rate=rate)
    several = [np.ravel(each) for each in (x if isinstance(x, (list, tuple)) or np.ndim(x) == 3 else [x])]
    if not any(map(len, several)):
        raise ValueError("`x` must have at least one recording with a sample; received none.")
    figure = _figure(8.0, min(0.8 + 1.2 * len(several), 40.0))
    panels = figure.subplots(len(several), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, samples in zip(panels, several, strict=True):
        axes.plot(np.arange(len(samples)) / rate, samples, color=_COMPOSED, lw=0.6)
        axes.margins(x=0.0)
    panels[-1].set_xlabel("time in seconds")
    return _finish(figure, title, path)


def _feature_panels(num_features: int, num_steps: int, names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each feature, one below another, and its name; of many for the first."""
    if names and len(names) != num_features:
        raise ValueError(f"`names` must have one for each of the {num_features} features; received {len(names)}.")
    num_panels = min(num_features, _MOST_PANELS)
    figure = _figure(min(7.0 + 0.01 * num_steps, 12.0), 1.4 + (2.4 if num_panels == 1 else 1.3) * num_panels)
    panels = list(figure.subplots(num_panels, sharex=True, squeeze=False)[:, 0])
    for d, axes in enumerate(panels):
        axes.set_ylabel(names[d] if names else f"x{d}" if num_features > 1 else "value", parse_math=False)
        axes.grid(axis="y", color="#e3e5e8", lw=0.8)
        axes.set_axisbelow(True)
    if num_panels < num_features:
        panels[0].set_title(f"the first {num_panels} of {num_features} features", loc="right", fontsize=9, color="#5f6368")
    return figure, panels


def _draw_line(axes: Axes, times: np.ndarray, values: np.ndarray, ink: str, **style: Any) -> None:
    """A line through values `[T]`, dots where the ones beside it are missing."""
    known = np.pad(np.isfinite(values), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    dots: dict[str, Any] = {"marker": ".", "ms": 4, "markevery": alone} if alone.any() else {}
    axes.plot(times, values, **{"color": ink, "lw": 1.2, "zorder": 3, **dots, **style})


def _mixed(colour: str, share: float) -> tuple[float, ...]:
    """A colour on white, opaque, so that nested bands do not add up."""
    from matplotlib.colors import to_rgb

    return tuple(1.0 - share * (1.0 - part) for part in to_rgb(colour))


def _legend_above(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9, handlelength=1.2)


def attention(
    weights: np.ndarray,
    source: Sequence[str],
    target: Sequence[str],
    path: str | Path | None = None,
    *,
    title: str = "",
) -> Figure:
    """Draws where a decoder looks: a row for each token it writes, a column for each it reads; black is all, white nothing.

    Args:
        weights: `[L, S]`, in [0, 1].
        source: the tokens read `[S]`; what no font at hand can write is drawn as a box.
        target: the tokens written `[L]`.
        path: the picture file, format by its suffix; not written where None.
        title: heading of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: on numbers of tokens that are not those of the weights, or values outside [0, 1].
    """
    return _token_map("weights", weights, source, target, ("source", "target"), "attention", title, path)


def tag_probs(
    probs: np.ndarray,
    tokens: Sequence[str],
    tags: Sequence[str],
    path: str | Path | None = None,
    *,
    title: str = "",
) -> Figure:
    """Draws the probability of each tag at each token: a row for each tag that has some, a column for each token.

    Args:
        probs: `[T, K]`, in [0, 1].
        tokens: `[T]`.
        tags: names of the tags `[K]`. Those below a hundredth everywhere are left out.
        path, title: as in `attention`.

    Returns:
        The figure.

    Raises:
        ValueError: as `attention`.
    """
    probs = np.asarray(probs, float)
    if probs.ndim == 2 and probs.shape[1] == len(tags) and probs.size:
        shown = np.flatnonzero(probs.max(0) >= 0.01)
        probs, tags = probs[:, shown], [tags[int(k)] for k in shown]
    return _token_map("probs", probs.T, tokens, tags, ("", "tag"), "probability", title, path)


def _token_map(
    name: str,
    values: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    axes_names: tuple[str, str],
    scale_name: str,
    title: str,
    path: str | Path | None,
) -> Figure:
    """A heat map of numbers in [0, 1], `[rows, columns]`, each with its words."""
    values = np.asarray(values, float)
    if values.shape != (len(rows), len(columns)) or not values.size:
        raise ValueError(
            f"`{name}` must have a number for each pair of {len(rows)} and {len(columns)} tokens, at least one; "
            f"received shape {list(values.shape)}."
        )
    if not (values.min() >= -1e-3 and values.max() <= 1.0 + 1e-3):
        raise ValueError(f"`{name}` must lie in [0, 1]; received {values.min():.6g} to {values.max():.6g}. Are they logarithms?")
    fonts, written = _written([*columns, *rows])
    longest = [max(map(len, part)) for part in (written[: len(columns)], written[len(columns) :])]
    width, height = 0.26 * len(columns) + 0.09 * longest[1] + 1.8, 0.26 * len(rows) + 0.09 * longest[0] + 0.9
    figure = _figure(min(max(width, 3.0), 40.0), min(max(height, 1.8), 40.0))
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Greys", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    style: dict = {"family": fonts, "fontsize": 9, "parse_math": False}  # a token may be a $
    every = math.ceil(len(columns) / 150), math.ceil(len(rows) / 150)  # as many as have room
    axes.set_xticks(range(0, len(columns), every[0]), written[: len(columns) : every[0]], rotation=90, **style)
    axes.set_yticks(range(0, len(rows), every[1]), written[len(columns) :: every[1]], **style)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set(xlabel=axes_names[0], ylabel=axes_names[1])
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=20, label=scale_name)
    bar.outline.set_visible(False)
    return _finish(figure, title, path)


_FONTS = (
    "Noto Sans CJK JP", "Noto Sans JP", "Noto Sans CJK SC", "Source Han Sans", "IPAexGothic", "TakaoGothic", "Hiragino Sans",
    "Yu Gothic", "MS Gothic", "Microsoft YaHei", "PingFang SC", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Arial Unicode MS", "Noto Sans",
)  # fmt: skip
"""Fonts with more letters than that of matplotlib, which lacks those of China, Japan and Korea."""


def _written(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Fonts that can write the words, and the words: white space shown, and a box for what no font has, so that none warns."""
    from matplotlib import font_manager

    words = [word.translate({10: "\\n", 9: "\\t", 13: "\\r"}) or "''" for word in words]
    words = [word if word.strip() else "\u2423" * len(word) for word in words]
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts: list[str] = []
    known: set[int] = set()
    for name in ("DejaVu Sans", *_FONTS):
        lacking = any(ord(letter) not in known for word in words for letter in word)
        if name in installed and (not fonts or lacking):
            found = set(font_manager.get_font(font_manager.findfont(name)).get_charmap())
            if found - known:
                fonts.append(name)
                known |= found
    return fonts, ["".join(letter if ord(letter) in known else "\u25a1" for letter in word) for word in words]


def _draw_features(axes: Axes, series: np.ndarray, levels: np.ndarray | None) -> None:
    """Lines of the features `[T, D]`, and of the levels of their states `[T, D]`."""
    num_steps, num_features = series.shape
    many = num_features > len(_SERIES)  # one thin ink: which line is which cannot be seen, that they move together can
    inks = _SERIES if 1 < num_features <= len(_SERIES) else ["#23272e"] * num_features
    for d, (values, ink) in enumerate(zip(series.T, inks, strict=False)):
        known = np.pad(np.isfinite(values), 1)
        dots = known[1:-1] & ((~known[:-2] & ~known[2:]) | (num_steps <= 120 and not many))  # between gaps there is no line
        style: dict = {"color": ink, "lw": 0.5 if many else 1.0, "alpha": 0.5 if many else 1.0, "zorder": 3}
        axes.plot(values, marker=".", ms=5, markevery=dots, label=f"x{d}" if num_features > 1 else "series", **style)
    if many:
        return
    if levels is not None:
        edges = np.arange(num_steps + 1) - 0.5
        for d, (values, ink) in enumerate(zip(levels.T, inks, strict=False)):
            label = "mean of the state" if not d else None
            style = {"color": ink, "lw": 2.4, "alpha": 0.5, "zorder": 2, "drawstyle": "steps-post"}
            axes.plot(edges, np.append(values, values[-1:]), label=label, **style)
    if num_features > 1 or levels is not None:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=num_features + 1, frameon=False, borderaxespad=0.1)


def _draw_roll(axes: Axes, roll: np.ndarray, prefix_steps: int) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    keys = np.arange(-3, roll.shape[1] + 3)
    for key in keys[np.isin((keys + LOWEST) % 12, _BLACK_KEYS)]:
        axes.axhspan(key - 0.5, key + 0.5, color="#f3f4f6", lw=0, zorder=0)
    if prefix_steps:
        axes.axvspan(0, prefix_steps, color="#f6e7b8", alpha=0.45, lw=0, zorder=0.5)
    for first, last, colour, label in ((0, prefix_steps, _GIVEN, "given"), (prefix_steps, len(roll), _COMPOSED, "composed")):
        bars = [Rectangle((first + t + 0.06, key - 0.4), n - 0.12, 0.8) for t, n, key in roll_notes(roll[first:last])]
        axes.add_collection(PatchCollection(bars, facecolor=colour, edgecolor="none", zorder=2))
        axes.fill_between([], [], color=colour, label=label)  # an entry for the legend
    octaves = np.arange(3, roll.shape[1], 12)  # the C's
    axes.set_yticks(octaves, [f"C{(key + LOWEST) // 12 - 1}" for key in octaves])
    axes.grid(axis="y", color="#c9ccd1", lw=0.8, zorder=1)
    axes.set_axisbelow(True)


# Pictures of pixels ---------------------------------------------------------------------------------------------------

_DPI = 150
_SEPARATOR = "#9eb5d1"  # bluish, since greys may be pixels
_MARGIN = 0.12  # inches
_SIDE, _LARGEST_SIDE = 1200, 160  # dots: small pictures are enlarged while the figure and they themselves are no longer
_SIGNED = ("#0a2f66", "#3f7fc4", "#d9d9d9", "#dd7a3c", "#7d2a06")  # negative to positive; zero is grey


def image_grid(
    x: np.ndarray,
    shape: tuple[int, int] | None,
    path: str | Path | None = None,
    *,
    columns: int | None = None,
    title: str = "",
) -> Figure:
    """Draws pictures side by side, row after row: 0 is black, 1 is white; other ranges are scaled, and the figure says so.

    Args:
        x: the pictures, vectors of pixels `[N, V]`, each row after row.
        shape: rows and columns of a picture. Where None, each picture is a line of a strip `[N, V]`.
        path: the picture file, format by its suffix; not written where None.
        columns: pictures side by side; where None, as many as make the figure about square.
        title: heading of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: `x` is no array `[N, V]` of finite numbers, or its pictures have another shape.
    """
    pixels = _checked_pixels("x", x, "[N, V]")
    if shape is None:
        return _strips([pixels], ["picture"], title, path)
    colours, note = _greys(_panels("x", pixels, shape))
    return _draw_tiles(_in_rows(colours, columns), title, path, note=note)


def receptive_fields(
    weights: np.ndarray,
    shape: tuple[int, int] | None,
    path: str | Path | None = None,
    *,
    columns: int | None = None,
    title: str = "",
) -> Figure:
    """Draws the weights of each hidden unit as a picture, on a scale of its own from -m to m, where m is its largest modulus.

    Args:
        weights: from pixels to hidden units, `[V, H]`.
        shape, path, columns, title: as in `image_grid`.

    Returns:
        The figure.

    Raises:
        ValueError: as in `image_grid`.
    """
    from matplotlib.colors import LinearSegmentedColormap

    filters = _checked_pixels("weights", weights, "[V, H]").T
    largest = np.abs(filters).max(axis=1, keepdims=True)
    scaled = filters / np.where(largest > 0, largest, 1.0)
    signed = LinearSegmentedColormap.from_list("signed", _SIGNED, N=257)  # an odd number: one is the middle
    if shape is None:
        words = "weight, as a share of its unit's largest"
        return _strips([scaled], ["hidden unit"], title, path, colours=signed, limits=(-1.0, 1.0), scale_name=words)
    tiles = signed((_panels("weights", scaled, shape) + 1.0) / 2.0)[..., :3]
    note = "each on its own scale: blue is negative, grey 0, orange positive"
    return _draw_tiles(_in_rows(tiles, columns), title, path, note=note)


def reconstructions(
    x: np.ndarray,
    x_hat: np.ndarray,
    shape: tuple[int, int] | None,
    path: str | Path | None = None,
    *,
    columns: int | None = None,
    title: str = "",
) -> Figure:
    """Draws pictures, and below each what a model makes of it.

    Args:
        x: the pictures `[N, V]`.
        x_hat: their reconstructions `[N, V]`, for example the probabilities of the pixels; on the scale of `x`.
        shape, path, title: as in `image_grid`.
        columns: pairs side by side; where None, as many as make the figure about square.

    Returns:
        The figure.

    Raises:
        ValueError: as in `image_grid`, or where the two have different shapes.
    """
    given, made = _checked_pixels("x", x, "[N, V]"), _checked_pixels("x_hat", x_hat, "[N, V]")
    if given.shape != made.shape:
        raise ValueError(
            f"`x_hat` must have the shape of `x`, {list(given.shape)}, a reconstruction for each picture; "
            f"received {list(made.shape)}."
        )
    if shape is None:
        return _strips([given, made], ["given", "reconstructed"], title, path)
    colours, note = _greys(_panels("x", np.concatenate([given, made]), shape))
    above, below = (_in_rows(part, columns, lines=2) for part in np.split(colours, 2))
    rows = [row for pair in zip(above, below, strict=True) for row in pair]
    return _draw_tiles(rows, title, path, note=note, row_names=["given", "reconstructed"] * len(above), group=2)


def chains(
    states: np.ndarray,
    shape: tuple[int, int] | None,
    path: str | Path | None = None,
    *,
    sweeps: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Draws Markov chains of pictures: a row is a chain, a column the states after so many sweeps.

    Args:
        states: the states of C chains at S times, `[C, S, V]`.
        shape, path, title: as in `image_grid`. Where `shape` is None, the strip of a chain is below that of the one before.
        sweeps: the number of sweeps before each of the S times; 0, 1, 2, ... where None.

    Returns:
        The figure.

    Raises:
        ValueError: as in `image_grid`, for `[C, S, V]`, or where `sweeps` has not S numbers.
    """
    states = _checked_pixels("states", states, "[C, S, V]")
    num_chains, num_times, _ = states.shape
    sweeps = list(range(num_times)) if sweeps is None else [int(sweep) for sweep in sweeps]
    if len(sweeps) != num_times:
        raise ValueError(f"`sweeps` must have a number for each of the {num_times} times of `states`; received {len(sweeps)}.")
    names = [f"chain {c}" for c in range(1, num_chains + 1)]
    if shape is None:
        words = f"sweeps {sweeps[0]} to {sweeps[-1]}, downwards"
        return _strips([*states], names, title, path, ylabel=words)
    colours, note = _greys(_panels("states", states.reshape(num_chains * num_times, -1), shape))
    rows = _in_rows(colours, num_times)
    return _draw_tiles(rows, title, path, note=note, row_names=names, column_names=sweeps, xlabel="sweeps")


def _checked_pixels(name: str, values: np.ndarray, axes: str) -> np.ndarray:
    """`values` as floats; ValueError unless they are finite and of the axes, none of which is empty."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim != axes.count(",") + 1 or not array.size:
        raise ValueError(
            f"`{name}` must be numbers {axes}, at least one of each axis; received {array.dtype} of shape {list(array.shape)}."
        )
    array = array.astype(float)
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(f"`{name}` must be finite; received {array[tuple(place)]} at index {place}. Did the training diverge?")
    return array


def _panels(name: str, pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`[N, V]` as pictures `[N, H, W]`."""
    if len(shape) != 2 or min(shape) < 1 or math.prod(shape) != pixels.shape[1]:
        raise ValueError(
            f"`shape` must be rows and columns of a picture, whose product is V of `{name}`, {pixels.shape[1]}; received {shape}."
        )
    return pixels.reshape(-1, *shape)


def _in_rows(tiles: np.ndarray, columns: int | None, lines: int = 1) -> list[np.ndarray]:
    """Tiles `[N, H, W, 3]` in rows of `columns`, or as many that a figure with `lines` lines a row is about square."""
    num, height, width, _ = tiles.shape
    if columns is None:
        columns = num if num <= 6 * lines else math.ceil(math.sqrt(lines * num * height / width))
    at_least(1, columns=columns)
    return [tiles[i : i + columns] for i in range(0, num, columns)]


def _greys(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Values as colours `[..., 3]` from black to white, and what these stand for where it is not 0 and 1."""
    low, high = _limits(values)
    note = "" if (low, high) == (0.0, 1.0) else f"black is {low:.3g}, white {high:.3g}"
    return np.repeat(((values - low) / (high - low))[..., None], 3, -1), note


def _limits(values: np.ndarray) -> tuple[float, float]:
    """0 and 1 where these hold all values, else the least and the largest."""
    low, high = float(values.min()), float(values.max())
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high if high > low else low + 1.0)


def _draw_tiles(
    rows: Sequence[np.ndarray],
    title: str,
    path: str | Path | None,
    *,
    note: str = "",
    row_names: Sequence[str] = (),
    column_names: Sequence[int] = (),
    xlabel: str = "",
    group: int = 0,
) -> Figure:
    """Rows of tiles `[N, H, W, 3]` in one array, thin lines between them, each pixel a square of whole dots.

    `group`: after so many rows the line is wide.
    """
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure

    ink = np.rint(np.multiply(to_rgba(_SEPARATOR), 255.0)).astype(np.uint8)
    num_columns, height, width, _ = rows[0].shape
    scale = max(1, min(_SIDE // max(height * len(rows), width * num_columns), _LARGEST_SIDE // max(height, width)))
    line = 1 if scale == 1 else 2
    tops = [line + i * (height * scale + line) + (3 * line * (i // group) if group else 0) for i in range(len(rows))]
    lefts = [line + i * (width * scale + line) for i in range(num_columns)]
    dots = np.zeros((tops[-1] + height * scale + line, lefts[-1] + width * scale + line, 4), np.uint8)  # transparent
    for row, top in zip(rows, tops, strict=True):
        for tile, left in zip(row, lefts, strict=False):
            frame = dots[top - line : top + height * scale + line, left - line : left + width * scale + line]
            frame[...] = ink
            frame[line:-line, line:-line, :3] = np.rint(tile * 255.0).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    # margins in dots, so that the array's dots are those of the file
    above = round(_DPI * (0.42 if title else _MARGIN))
    below = round(_DPI * (_MARGIN + 0.2 * (bool(note) + bool(xlabel) + bool(column_names))))
    left = round(_DPI * (_MARGIN + (0.072 * max(map(len, row_names)) if row_names else 0.0)))
    right = round(_DPI * _MARGIN)
    least = round(_DPI * (0.075 * max(len(note), 1.35 * len(title)) + 2 * _MARGIN))  # what the words need
    right = max(right, least - left - dots.shape[1])
    size = np.array([left + dots.shape[1] + right, below + dots.shape[0] + above])
    figure = Figure(figsize=tuple((size + 0.01) / _DPI))
    axes = figure.add_axes((left / size[0], below / size[1], dots.shape[1] / size[0], dots.shape[0] / size[1]))
    axes.imshow(dots, interpolation="none", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor="#5f6368", pad=3)
    marks = range(0, len(row_names), math.ceil(0.12 * _DPI / (height * scale + line)))  # as many as have room
    axes.set_yticks([tops[i] + height * scale / 2 - 0.5 for i in marks], [row_names[i] for i in marks])
    longest = max(map(len, map(str, column_names)), default=0)
    marks = range(0, len(column_names), math.ceil((0.075 * longest + 0.1) * _DPI / (width * scale + line)))
    axes.set_xticks([lefts[i] + width * scale / 2 - 0.5 for i in marks], [str(column_names[i]) for i in marks])
    words = "\n".join(filter(None, (xlabel, note)))
    axes.set_xlabel(words, loc="left", fontsize=9, color="#5f6368", labelpad=3)
    if title:
        axes.set_title(title, loc="left", fontsize=12, pad=6)
    return _finish(figure, "", path)


def _strips(
    blocks: Sequence[np.ndarray],
    names: Sequence[str],
    title: str,
    path: str | Path | None,
    *,
    ylabel: str = "",
    colours: Any = "gray",
    limits: tuple[float, float] | None = None,
    scale_name: str = "",
) -> Figure:
    """Blocks `[N, V]` in one array, one below another, a vector a line: for pictures whose shape is not known."""
    from matplotlib.ticker import MaxNLocator

    lines = np.concatenate(blocks)
    low, high = limits or _limits(lines)
    figure = _figure(7.5, min(2.0 + 0.08 * len(lines), 24.0))
    axes = figure.subplots()
    image = axes.imshow(lines, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    if len(blocks) == 1:
        ylabel = names[0]
        axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
    else:
        starts = np.cumsum([0, *map(len, blocks)]) - 0.5
        axes.hlines(starts[1:-1], -0.5, lines.shape[1] - 0.5, color=_SEPARATOR, lw=1.0)
        marks = range(0, len(blocks), math.ceil(len(blocks) / 40))
        axes.set_yticks([(starts[i] + starts[i + 1]) / 2 for i in marks], [names[i] for i in marks])
    axes.set(xlabel="pixel", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30, label=scale_name)
    bar.outline.set_visible(False)
    return _finish(figure, title, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _finish(figure: Figure, title: str, path: str | Path | None) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9aa0a6")
        axes.tick_params(color="#9aa0a6")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    if path is not None:
        with replace_file(path) as temporary:
            figure.savefig(temporary, dpi=_DPI)
    return figure
