"""Matplotlib's SVG as part of a page: its colours are those of the page, light and dark.

Matplotlib draws with stand-in colours, which are then replaced by variables of the page's
style. Texts stay texts, so that they can be read and have the page's font.
"""

import html
import io
import itertools
import re
from typing import Any

# Stand-ins that no one would draw with -> colours of the page.
INK, GRID = "#010203", "#010204"
SERIES = tuple(f"#0102{16 + index:02x}" for index in range(8))
COLOURS = {
    INK: "currentColor",
    GRID: "var(--line)",
    **{colour: f"var(--s{index})" for index, colour in enumerate(SERIES)},
}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flax_adapt",
    "text.parse_math": False,  # names are the user's, and may hold a $
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
_numbers = itertools.count(1)


def settings() -> Any:
    """Returns the context in which a figure is made and drawn."""
    import matplotlib

    return matplotlib.rc_context(_SETTINGS)


def new_axes(width: float = 3.5, height: float = 2.3) -> tuple[Any, Any]:
    """Returns (figure, axes), transparent, of a size in inches that a phone can show."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    return figure, axes


def draw(figure: Any, text: str) -> str:
    """Returns the <svg> of a figure; text: what it shows, for those who cannot see it."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return to_inline(file.getvalue(), text)


def to_inline(svg: str, text: str) -> str:
    """Returns the <svg> of a file as a part of HTML: ids that no other picture has."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    used = {*re.findall(r'(?:url\(#|href="#)([^")]+)', body)}
    body = re.sub(r' id="([^"]+)"', lambda found: found[0] * (found[1] in used), body)
    mark = f"p{next(_numbers)}-"
    body = re.sub(r'( id="|url\(#|href="#)', rf"\1{mark}", body)
    body = body.replace("xlink:href", "href").replace(
        ' xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    for stand_in, colour in COLOURS.items():
        body = body.replace(stand_in, colour)
    head, _, rest = body.partition(">")
    (box,) = re.findall(r'viewBox="[^"]+"', head)
    label = html.escape(text, quote=True)
    return f'<svg class="plot" role="img" aria-label="{label}" {box}>{rest.strip()}'
