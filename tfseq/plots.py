"""Pictures with matplotlib, through its object interface: no global state, no window, safe in a server and in threads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfseq.data.music import LOWEST, check_roll
from tfseq.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLACK_KEYS = (1, 3, 6, 8, 10)  # pitch classes
_GIVEN, _COMPOSED = "#8a8f98", "#1f5fa8"
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
            figure.savefig(temporary, dpi=150)
    return figure
