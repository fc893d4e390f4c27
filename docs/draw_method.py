"""Draws the pictures of method.md: python docs/draw_method.py. The time lines are those of the simulator."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from hpcdml.config import PolicyOptions
from hpcdml.observability.colours import COLOURS, GREY
from hpcdml.protocol.messages import Push
from hpcdml.protocol.policies import make_policy
from hpcdml.simulation.cluster import Cluster, Network

HERE = Path(__file__).parent
END = 21.0  # local steps of the fast worker that the pictures show
STEP = 32.0  # pixels of such a step
LEFT, TOP, BAR, GAP = 92.0, 30.0, 20.0, 26.0
FONT = 'font-family="sans-serif" font-size="12"'


class Recorded(Cluster):
    """A simulated run of two workers that remembers when what happened."""

    def __init__(self, policy: str, seconds: tuple[float, float]) -> None:
        self.steps: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        self.pushed: dict[int, list[float]] = {1: [], 2: []}
        chosen = make_policy(PolicyOptions(policy=policy))  # type: ignore[arg-type]
        # Eight chunks: one round needs four steps' time for the two workers, push and pull overlapping.
        network = Network(latency=0.1, chunk_seconds=0.2)
        super().__init__(chosen, 2, self._seconds, lambda *_: np.zeros((8, 1)), np.zeros((8, 1)), network)
        self.seconds = seconds

    def _seconds(self, rank: int, _: int) -> float:
        self.steps[rank].append((self.now, self.seconds[rank - 1]))
        return self.seconds[rank - 1]

    def _send_push(self, rank: int, push: Push) -> None:
        if push.local_steps:
            self.pushed[rank].append(self.now)
        super()._send_push(rank, push)


def timeline(policy: str, seconds: tuple[float, float], top: float) -> list[str]:
    """The rows of both workers: their steps by the version that they train on, below each the update under way."""
    run = Recorded(policy, seconds)
    run.run()
    parts = []
    for rank in (1, 2):
        y = top + (rank - 1) * (BAR + GAP)
        parts.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end" {FONT} fill="{GREY}">worker {rank}</text>')
        adopted = run.report.adopted[rank]
        for number, (begin, lasts) in enumerate(run.steps[rank]):
            version = max((v for steps, v in adopted if steps <= number), default=0)
            if begin < END:
                parts.append(_bar(begin, min(END, begin + lasts), y, BAR, COLOURS[version % len(COLOURS)], 1.0))
        for begin, (steps, version) in zip(run.pushed[rank], adopted, strict=False):
            end = run.steps[rank][steps][0] if steps < len(run.steps[rank]) else END
            if begin < END:
                parts.append(_bar(begin, min(END, end), y + BAR + 3, 5, COLOURS[version % len(COLOURS)], 0.55))
    return parts


def _bar(begin: float, end: float, y: float, height: float, colour: str, opacity: float) -> str:
    x, width = LEFT + begin * STEP, (end - begin) * STEP - 1
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:g}" rx="2" '
        f'fill="{colour}" opacity="{opacity:g}"/>'
    )


def overlap(seconds: tuple[float, float]) -> str:
    """Blocking above overlap, on the same machines and network."""
    rows, top = [], TOP
    for policy, name in (("bsp", "blocking (bsp)"), ("losp", "overlapped (losp)")):
        rows.append(f'<text x="0" y="{top - 10}" {FONT} font-weight="bold" fill="{GREY}">{name}</text>')
        rows += timeline(policy, seconds, top)
        top += 2 * (BAR + GAP) + TOP
    return _svg(LEFT + END * STEP, top - TOP, rows)


def compensation() -> str:
    """What a worker does with new global parameters: forget its unsent progress, or keep it."""
    push, now, x = (70.0, 190.0), (250.0, 130.0), (170.0, 75.0)
    step = (now[0] - push[0], now[1] - push[1])
    kept = (x[0] + step[0], x[1] + step[1])
    red, blue, green = COLOURS[0], COLOURS[1], COLOURS[2]
    parts = [
        '<defs><marker id="tip" orient="auto" markerWidth="5" markerHeight="5" viewBox="0 0 7 6" refX="6" refY="3">'
        f'<path d="M0,0 L7,3 L0,6 z" fill="{GREY}"/></marker></defs>'
    ]
    way = [push, (120.0, 160.0), (180.0, 155.0), now]
    for a, b in zip(way, way[1:], strict=False):
        parts.append(_arrow(a, b, blue))
    parts.append(_arrow(push, x, GREY, dashed=True))
    parts.append(_arrow(x, kept, green))
    for point, colour, text, dx, dy in (
        (push, blue, "the local model at its last push", 10, 16),
        (now, blue, "the local model now: it has gone -d", 12, 5),
        (x, red, "the new global parameters x", -150, -26),
        (x, red, "(osp trains on from here)", -150, -11),
        (kept, green, "x - lambda d", 12, 2),
        (kept, green, "(losp trains on from here)", 12, 17),
    ):
        parts.append(f'<circle cx="{point[0]:g}" cy="{point[1]:g}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{point[0] + dx:g}" y="{point[1] + dy:g}" {FONT} fill="{GREY}">{text}</text>')
    return _svg(560, 230, parts)


def _arrow(a: tuple[float, float], b: tuple[float, float], colour: str, dashed: bool = False) -> str:
    length = math.dist(a, b)
    cut = 6 / length
    x, y = b[0] - (b[0] - a[0]) * cut, b[1] - (b[1] - a[1]) * cut
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return (
        f'<line x1="{a[0]:g}" y1="{a[1]:g}" x2="{x:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="2"{dash} '
        'marker-end="url(#tip)"/>'
    )


def _svg(width: float, height: float, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def pictures() -> dict[str, str]:
    """All pictures by the names of their files."""
    return {
        "method-overlap.svg": overlap((1.0, 1.0)),
        "method-straggler.svg": overlap((1.0, 3.0)),
        "method-compensation.svg": compensation(),
    }


if __name__ == "__main__":
    for name, text in pictures().items():
        (HERE / name).write_text(text)
