"""A plot as plain data, which may have controls: every position of them is computed beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Values = tuple[float | None, ...]  # None leaves a gap
Style = Literal["line", "dashes", "points", "bars"]


@dataclass(frozen=True)
class Control:
    """What a reader may change: a slider over numbers, a selector over words."""

    name: str
    values: tuple[float | str, ...]
    start: int = 0  # index of the value shown first

    @property
    def is_slider(self) -> bool:
        return all(not isinstance(value, str) for value in self.values)


@dataclass(frozen=True)
class Curve:
    """One curve: its values for each frame, or a single frame if no control changes it."""

    name: str
    frames: tuple[Values, ...]
    style: Style = "line"


@dataclass(frozen=True)
class Plot:
    """Curves over one x axis. A frame is a position of all controls, in their order, the last one fastest.

    Raises:
        ValueError: for a curve with another number of frames, or of values in one, or a control outside itself.

    >>> plot = Plot("Parabola", (0, 1, 2), (Curve("a x^2", ((0, 1, 4), (0, 2, 8))),), controls=(Control("a", (1, 2)),))
    >>> plot.frames
    2
    """

    title: str
    x: tuple[float | str, ...]
    curves: tuple[Curve, ...]
    x_label: str = ""
    y_label: str = ""
    controls: tuple[Control, ...] = ()
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        for control in self.controls:
            if not 0 <= control.start < len(control.values):
                raise ValueError(f"control {control.name!r} starts at {control.start}, of {len(control.values)} values")
        for curve in self.curves:
            if len(curve.frames) not in (1, self.frames):
                raise ValueError(f"curve {curve.name!r} has {len(curve.frames)} frames, the controls {self.frames}")
            if any(len(values) != len(self.x) for values in curve.frames):
                raise ValueError(f"curve {curve.name!r} has a frame that is not of x's length, {len(self.x)}")

    @property
    def frames(self) -> int:
        return math.prod(len(control.values) for control in self.controls)

    @property
    def first(self) -> int:
        """The frame that is shown first."""
        frame = 0
        for control in self.controls:
            frame = frame * len(control.values) + control.start
        return frame
