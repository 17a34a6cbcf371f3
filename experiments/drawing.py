"""Drawings in SVG: a scatter with names, and small panels of curves.

A point is (x, low, y, high): y, and the ends of its bar or band.
"""

import math
from html import escape
from typing import NamedTuple

CHARACTER, LINE = 6.9, 14  # width and height of 11 px text, in pixels


class Curve(NamedTuple):
    name: str
    points: list
    kind: str = "other"  # its colour in drawing.css: hut, other, paper
    marked: int = -1  # the point that a panel marks
    note: str = ""  # in a panel


class Axis:
    """Maps values to pixels from `start` to `end`, with some room on both sides."""

    def __init__(self, values, start, end, log=False):
        self.start, self.end, self.log = start, end, log
        low, high = map(self.scaled, (min(values), max(values)))
        room = max(0.07 * (high - low), 0.2) if log else 0.07 * (high - low) or 0.05 * abs(high) or 1
        self.low, self.high = low - room, high + room

    def scaled(self, value):
        return math.log10(value) if self.log else value

    def __call__(self, value):
        share = (self.scaled(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self):
        """Up to five round numbers, on a logarithmic axis 1, 2 and 5 times powers of ten, or these alone."""
        if self.log:
            powers = [10**i for i in range(math.floor(self.low), math.ceil(self.high))]
            found = [m * p for p in powers for m in (1, 2, 5) if self.low <= math.log10(m * p) <= self.high]
            return found if len(found) <= 5 else [value for value in found if value in powers]
        power = 10 ** math.floor(math.log10((self.high - self.low) / 5))
        step = next(m * power for m in (1, 2, 5, 10) if (self.high - self.low) / (m * power) <= 5)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def amount(value):
    """4000000 -> 4M"""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, 1e4):
            return f"{value / unit:.9g}{name}"
    return f"{value:.9g}"


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(points, kind, tag="polyline"):
    return f'<{tag} class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def dot(x, y, kind, radius=4):
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def svg(width, height, name, parts):
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(name)}"'
    return f"<svg {head}>{''.join(parts)}</svg>"


def fitted(name):
    return name if len(name) <= 24 else "…" + name[-23:]


def grid(x, x_ticks, y):
    """The numbers of both axes, and a faint line at each of y's."""
    parts = [text(x(v), y.start + 14, amount(v), "mute", "middle") for v in x_ticks]
    for v in y.ticks():
        parts.append(line([(x.start, y(v)), (x.end, y(v))], "rule"))
        parts.append(text(x.start - 5, y(v) + 4, amount(v), "mute", "end"))
    return parts


def front(points):
    """The stairs [(x, y)] of the points that none beats at their x or less."""
    stairs, best = [], -math.inf
    for x, _, y, _ in sorted(points, key=lambda point: (point[0], -point[2])):
        if y > best:
            stairs += [(x, best), (x, y)]
            best = y
    return stairs[1:]


def scatter(title, x_title, curves, pareto=False, width=350, height=270, log_y=False, style=""):
    """Each curve's points with their bars, joined by a line; where x is 0, a dashed line instead.

    A line joins each to its name in a column to the right, the highest on top. pareto draws the front.
    """
    curves = sorted(curves, key=lambda curve: -curve.points[-1][2])
    names = [fitted(curve.name) for curve in curves]
    points = [point for curve in curves for point in curve.points]
    height, column = max(height, 80 + LINE * len(names)), width - CHARACTER * max(map(len, names))
    left, top, right, bottom = 40, 28, column - 24, height - 34
    values = [value for value, *_ in points if value]
    x = Axis(values, left, right, log=max(values) > 30 * min(values) > 0)
    y = Axis([end for _, low, _, high in points for end in (low, high)], bottom, top, log_y)
    parts = [style, text(2, 12, title, "name"), *grid(x, x.ticks(), y)]
    x_title += " (log scale)" * x.log
    parts.append(text((left + right) / 2, height - 4, x_title, "mute", "middle"))
    if pareto:
        stairs = [(x(a) if a else left, y(b)) for a, b in front(points)]
        parts.append(line([*stairs, (right, stairs[-1][1])], "front"))
    name_y, dots = 0, []
    for name, (_, drawn, kind, *_), below in zip(names, curves, range(len(curves))[::-1], strict=True):
        path = [(x(value) if value else right, y(middle)) for value, _, middle, _ in drawn]
        name_y = min(max(path[-1][1], name_y + LINE), bottom - LINE * below)  # with room for the names below
        parts.append(line([path[-1], (column - 4, name_y)], f"leader {kind}"))
        parts.append(text(column, name_y + 4, name, f"label {kind}"))
        if not drawn[-1][0]:
            parts.append(line([(left, path[-1][1]), path[-1]], f"level {kind}"))
            continue
        parts += [line(path, f"curve {kind}")] if len(path) > 1 else []
        for (at, middle), (_, low, _, high) in zip(path, drawn, strict=True):
            parts += [line([(at, y(low)), (at, y(high))], f"bar {kind}")] if low < high else []
            dots.append(dot(at, middle, kind))
    return svg(width, height, f"{title}: {x_title}", parts + dots)


def panels(curves, log=False):
    """A drawing for each curve with its band, the others behind it in grey, all on the same axes."""
    if not curves:
        return []
    width, height, left, bottom = 168, 140, 36, 122
    values, *ends = zip(*(point for curve in curves for point in curve.points), strict=True)
    x, y = Axis(values, left, width - 8, log), Axis(sum(ends, ()), bottom, 36)
    means = [[(x(value), y(middle)) for value, _, middle, _ in curve.points] for curve in curves]
    found = []
    for curve, path in zip(curves, means, strict=True):
        kind, band = curve.kind, [(x(value), y(high)) for value, _, _, high in curve.points]
        band += [(x(value), y(low)) for value, low, _, _ in curve.points[::-1]]
        parts = grid(x, {min(values), max(values)}, y)
        parts += [line(other, "ghost") for other in means if other is not path]
        parts += [line(band, f"band {kind}", "polygon"), line(path, f"curve {kind}")]
        parts += [dot(*point, kind, 2) for point in path] if log else []
        parts += [dot(*path[curve.marked], kind)]
        parts += [text(2, 12, fitted(curve.name), "name"), text(2, 26, curve.note, "mute")]
        found.append(svg(width, height, f"{curve.name}: {curve.note}", parts))
    return found
