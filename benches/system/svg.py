"""Pictures as SVG, written by hand: lines over an axis that counts in powers of ten, and bars in parts. No script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

WIDTH, HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 170, 44, 52
COLOURS: Final = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#6d597a", "#8d99ae", "#3d405b", "#e07a5f", "#81b29a")
_STYLE: Final = (
    "text{font:13px sans-serif;fill:#333}.t{font-size:15px;font-weight:bold}.g{stroke:#ddd;stroke-width:1}"
    ".a{stroke:#333;stroke-width:1}.e{text-anchor:end}.m{text-anchor:middle}"
)

Points = Sequence[tuple[float, float]]


def lines(title: str, across: str, up: str, curves: Mapping[str, Points], *, log_x: bool = True) -> str:
    """Return a picture of curves; upwards it counts in powers of ten, across too unless told otherwise.

    Raises:
        ValueError: there is nothing to draw.
    """
    points = [point for curve in curves.values() for point in curve if point[1] > 0]
    if not points:
        raise ValueError(f"{title}: no points")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys)) + 1e-9)

    def x_of(x: float) -> float:
        share = math.log(x / x_low) / math.log(x_high / x_low) if log_x else (x - x_low) / (x_high - x_low)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return HEIGHT - _BOTTOM - math.log(y / y_low) / math.log(y_high / y_low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_LEFT, 24, title, "t")]
    y = y_low
    while y <= y_high * 1.0001:
        parts.append(_line(_LEFT, y_of(y), WIDTH - _RIGHT, y_of(y), "g"))
        parts.append(_text(_LEFT - 8, y_of(y) + 4, f"{y:g}", "e"))
        y *= 10
    for x in sorted(set(xs)) if log_x else (x_low + (x_high - x_low) * step / 5 for step in range(6)):
        parts.append(_line(x_of(x), HEIGHT - _BOTTOM, x_of(x), HEIGHT - _BOTTOM + 5, "a"))
        parts.append(_text(x_of(x), HEIGHT - _BOTTOM + 20, f"{x:g}", "m"))
    parts.append(_line(_LEFT, HEIGHT - _BOTTOM, WIDTH - _RIGHT, HEIGHT - _BOTTOM, "a"))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 10, across, "m"))
    parts.append(f'<text class="m" transform="translate(18 {HEIGHT / 2}) rotate(-90)">{escape(up)}</text>')
    for number, curve in enumerate(curves.values()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in curve if y > 0)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        if len(curve) < 12:
            parts += [
                f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="4" fill="{colour}"/>' for x, y in curve if y > 0
            ]
    parts += _legend(list(curves))
    return _picture(parts, title)


def bars(title: str, unit: str, stacks: Mapping[str, Mapping[str, float]]) -> str:
    """Return a picture with a bar for each of `stacks`, in parts.

    Raises:
        ValueError: there is nothing to draw.
    """
    most = max((sum(parts.values()) for parts in stacks.values()), default=0.0)
    if most <= 0:
        raise ValueError(f"{title}: no bars")
    names = list(dict.fromkeys(name for parts in stacks.values() for name in parts))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    step = (HEIGHT - _TOP - _BOTTOM) / len(stacks)
    left = 120
    scale = (WIDTH - left - _RIGHT - 60) / most
    shapes = [_text(left, 24, title, "t")]
    for place, (name, parts) in enumerate(stacks.items()):
        top = _TOP + place * step + step * 0.15
        x = float(left)
        shapes.append(_text(left - 8, top + step * 0.35 + 4, name, "e"))
        for part, value in parts.items():
            shapes.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{value * scale:.1f}" height="{step * 0.7:.1f}" '
                f'fill="{colours[part]}"><title>{escape(f"{name}, {part}: {value:.3g} {unit}")}</title></rect>'
            )
            x += value * scale
        shapes.append(_text(x + 6, top + step * 0.35 + 4, f"{sum(parts.values()):.3g} {unit}", ""))
    if len(names) > 1:
        shapes += _legend(names)
    return _picture(shapes, title)


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for number, name in enumerate(names):
        y = _TOP + 20 * number
        x = WIDTH - _RIGHT + 16
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(_text(x + 18, y + 11, name, ""))
    return parts


def _picture(parts: Sequence[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    style = (
        f'<title>{escape(title)}</title><style>{_STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    )
    return "\n".join([head, style, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'
