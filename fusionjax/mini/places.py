"""The places of the mini world, drawn as SVG shapes on a canvas of 96 × 96."""

from collections.abc import Iterable

PLAIN_BACKGROUNDS = {
    "white": "#FFFFFF",
    "grey": "#9AA0A6",
    "blue": "#8EC5F2",
    "yellow": "#F7E08A",
    "pink": "#F7BFD0",
    "green": "#A9DDA3",
}


def _box(x: float, y: float, width: float, height: float, color: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{color}"/>'


def _disc(x: float, y: float, radius: float, color: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{color}"/>'


def _area(path: str, color: str) -> str:
    return f'<path d="{path}" fill="{color}"/>'


def _dots(places: Iterable[tuple[int, int]], radius: float) -> str:
    return "".join(_disc(x, y, radius, "#FFFFFF") for x, y in places)


def _garden() -> str:
    red, yellow, white = "#E8436E", "#F7D23E", "#FFFFFF"
    flowers = [(7, 62, red), (15, 76, yellow), (89, 62, yellow), (81, 76, white)]
    shapes = [_box(0, 0, 96, 96, "#9ED8F5"), _box(0, 52, 96, 44, "#58B04B")]
    shapes += [_disc(x, y, 4.5, color) for x, y, color in flowers]
    for x in (8, 88):
        shapes += [_disc(x, 34, 13, "#2E7D3A"), _box(x - 2, 44, 4, 12, "#7A4B2A")]
    return "".join(shapes)


def _beach() -> str:
    sky, sun = _box(0, 0, 96, 96, "#8FD3F4"), _disc(82, 13, 8, "#FFD93B")
    return sky + sun + _box(0, 44, 96, 22, "#1E88C9") + _box(0, 64, 96, 32, "#F2D79B")


def _city() -> str:
    near, far = "#3A3F6B", "#2A2F5A"
    shapes = [_box(0, 0, 96, 96, "#14193C"), _disc(15, 12, 6, "#F6EFC0")]
    for x, y, width, color in (
        (-2, 38, 18, near),
        (16, 24, 15, far),
        (66, 20, 14, far),
        (80, 34, 18, near),
    ):
        shapes.append(_box(x, y, width, 96, color))
        shapes += [_box(x + width / 2 - 3, row, 6, 7, "#FFD95A") for row in range(y + 6, 90, 18)]
    return "".join(shapes)


def _snow() -> str:
    flakes = [(6, 10), (22, 16), (62, 9), (92, 8)]
    shapes = [
        _box(0, 0, 96, 96, "#C9E2F2"),
        _area("M-10 66 L16 22 L42 66 Z", "#7D93A8"),
        _area("M16 22 L6 39 L26 39 Z", "#FFFFFF"),
        _area("M54 66 L82 18 L112 66 Z", "#7D93A8"),
        _area("M82 18 L72 35 L92 35 Z", "#FFFFFF"),
        _box(0, 62, 96, 34, "#FFFFFF"),
        _dots(flakes, 2.5),
    ]
    return "".join(shapes)


def _library() -> str:
    colors = ("#B5382E", "#2E6E8E", "#D9A441", "#3E7D4E")
    shapes = [_box(0, 0, 96, 96, "#6B4226")]
    for y, shift in ((4, 0), (52, 2)):
        for number, x in enumerate(range(0, 96, 12)):
            shapes.append(_box(x, y, 12, 42, colors[(number + shift) % len(colors)]))
    return "".join(shapes)


def _space() -> str:
    stars = [(9, 10), (24, 22), (58, 8), (88, 50), (6, 76), (90, 78)]
    ring = '<ellipse cx="80" cy="18" rx="19" ry="4" fill="none" stroke="#F3D9A6" stroke-width="3"/>'
    planets = _disc(80, 18, 12, "#E0793B") + ring + _disc(9, 50, 9, "#4E8FD0")
    return _box(0, 0, 96, 96, "#0B0B1E") + planets + _dots(stars, 2.2)


PLACES = {
    "garden": _garden(),
    "beach": _beach(),
    "city": _city(),
    "snow": _snow(),
    "library": _library(),
    "space": _space(),
}


def background_svg(name: str) -> str:
    """An SVG picture of a plain background or a place.

    Args:
        name: A key of `PLAIN_BACKGROUNDS` or of `PLACES`.

    Returns:
        The SVG text.
    """
    shapes = PLACES[name] if name in PLACES else _box(0, 0, 96, 96, PLAIN_BACKGROUNDS[name])
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96">{shapes}</svg>'
