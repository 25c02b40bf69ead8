"""Cubic Bézier curves: points, parameters at a distance from an end, and pieces."""

import math
from itertools import pairwise

Point = tuple[float, float]
Curve = tuple[Point, Point, Point, Point]
"""Start, two control points, end."""


def point_at(curve: Curve, t: float) -> Point:
    """The point at parameter t in [0, 1]."""
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    x, y = (sum(weight * point[axis] for weight, point in zip(weights, curve, strict=True)) for axis in (0, 1))
    return x, y


def at_distance(curve: Curve, distance: float, *, from_end: bool = False) -> float:
    """The parameter at a distance from the start, or from the end, within the nearer half of the curve."""
    end, near, far = (curve[3], 1.0, 0.5) if from_end else (curve[0], 0.0, 0.5)
    for _ in range(12):
        middle = (near + far) / 2
        near, far = (middle, far) if math.dist(point_at(curve, middle), end) < distance else (near, middle)
    return far


def piece(curve: Curve, low: float, high: float) -> Curve:
    """The piece between two parameters, by blossoming."""

    def blossom(a: float, b: float, c: float) -> Point:
        points = list(curve)
        for t in (a, b, c):
            points = [(p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])) for p, q in pairwise(points)]
        return points[0]

    return blossom(low, low, low), blossom(low, low, high), blossom(low, high, high), blossom(high, high, high)
