"""Colours of curves in pictures: of medium lightness, so that they are read on white and on a dark page."""

from __future__ import annotations

GREY = "#808080"
COLOURS = ("#e0423f", "#2f8fd8", "#2aa15c", "#b06bd6", "#d98a12", "#14a3a3", "#d85b9e", "#8a8f2a", "#7d86e8", "#a8714a")
