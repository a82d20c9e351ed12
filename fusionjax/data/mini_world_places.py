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
    flowers = [(6, 60, red), (17, 71, yellow), (8, 84, white), (28, 60, white)]
    flowers += [(88, 61, yellow), (79, 72, red), (90, 84, white), (69, 59, red)]
    shapes = [_box(0, 0, 96, 96, "#9ED8F5"), _box(0, 52, 96, 44, "#58B04B")]
    for x, y, color in flowers:
        shapes += [_disc(x, y, 3.4, color), _disc(x, y, 1.3, "#FFF3B0")]
    for x in (8, 88):
        shapes += [_disc(x, 34, 13, "#2E7D3A"), _box(x - 2, 44, 4, 12, "#7A4B2A")]
    return "".join(shapes)


def _beach() -> str:
    sky, sun = _box(0, 0, 96, 96, "#8FD3F4"), _disc(82, 13, 8, "#FFD93B")
    sea, foam = _box(0, 44, 96, 22, "#1E88C9"), _box(0, 44, 96, 2, "#FFFFFF")
    return sky + sun + sea + foam + _box(0, 64, 96, 32, "#F2D79B")


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
        for row in range(y + 5, 90, 12):
            shapes += [
                _box(column, row, 4, 5, "#FFD95A") for column in range(x + 3, x + width - 4, 7)
            ]
    return "".join(shapes)


def _snow() -> str:
    flakes = [
        (5, 8),
        (20, 14),
        (36, 6),
        (60, 7),
        (74, 10),
        (90, 5),
        (4, 30),
        (92, 42),
        (10, 50),
        (60, 40),
    ]
    shapes = [
        _box(0, 0, 96, 96, "#C9E2F2"),
        _area("M-10 66 L16 22 L42 66 Z", "#7D93A8"),
        _area("M16 22 L8 36 L14 33 L18 37 L24 36 Z", "#FFFFFF"),
        _area("M54 66 L82 18 L112 66 Z", "#7D93A8"),
        _area("M82 18 L73 34 L80 31 L85 35 L92 34 Z", "#FFFFFF"),
        _box(0, 62, 96, 34, "#FFFFFF"),
        _dots(flakes, 1.8),
    ]
    return "".join(shapes)


def _library() -> str:
    colors = ("#B5382E", "#2E6E8E", "#D9A441", "#3E7D4E", "#E8DCC0")
    shapes = [_box(0, 0, 96, 96, "#6B4226")]
    for y, shift in ((3, 0), (35, 2), (67, 4)):
        for number, x in enumerate(range(1, 96, 10)):
            shapes.append(_box(x, y, 9, 26, colors[(number + shift) % len(colors)]))
    return "".join(shapes)


def _space() -> str:
    stars = [(8, 8), (22, 18), (12, 32), (34, 5), (58, 8), (90, 44), (84, 62), (4, 76), (24, 62)]
    stars += [(92, 80), (70, 40)]
    ring = '<ellipse cx="80" cy="18" rx="19" ry="4" fill="none" stroke="#F3D9A6" stroke-width="2"/>'
    planets = _disc(80, 18, 12, "#E0793B") + ring + _disc(8, 52, 9, "#4E8FD0")
    return _box(0, 0, 96, 96, "#0B0B1E") + planets + _dots(stars, 1.5)


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
