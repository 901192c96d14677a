"""One look for every chart: an SVG that takes the page's colours, and a PNG of the same picture.

Charts are drawn by matplotlib with the light colours. In the SVG each colour is then replaced by
the page's variable of that name, so one picture serves light and dark; texts stay texts. Colours
are never the only sign: arms differ in marker and carry labels.
"""

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from pipeline.errors import MissingPackageError

# Okabe and Ito's colours, which colour-blind people can tell apart, and a ramp of blues for
# alpha. (light, dark); every light colour is there once, because it is what names it in the SVG.
COLOURS = {
    "ink": ("#1b1f24", "#e8eaed"),
    "soft": ("#5b6470", "#a7b0bb"),
    "grid": ("#d9dde3", "#383f48"),
    "paper": ("#fffffe", "#16191d"),
    "untouched": ("#7a7f87", "#9aa1ab"),
    "teacher": ("#00805f", "#2cc79a"),
    "sft": ("#c2500a", "#f08a4b"),
    "kd": ("#0a63a8", "#58aeea"),
    "kd1": ("#7fb6de", "#2f6f9f"),
    "kd2": ("#5a9fd4", "#3f8dc4"),
    "kd3": ("#2f84c4", "#58a9de"),
    "kd4": ("#1767a8", "#86c5ee"),
    "kd5": ("#08487e", "#b9e0fb"),
    "front": ("#a3529a", "#d68fce"),
}
RAMP = ("kd1", "kd2", "kd3", "kd4", "kd5")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
FILLS = ("full", "none", "left", "top", "right", "bottom")
# A legend of more or longer entries would cover the marks: it goes below the axes.
MAX_INSIDE, MAX_INSIDE_CHARACTERS = 6, 14
LINE_CHARACTERS, LINE_INCHES = 50, 0.19
# Near the width of a phone, so that texts keep their size there.
WIDTH_INCHES, HEIGHT_INCHES = 4.3, 3.1
PNG_DOTS_PER_INCH = 200


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture with all that a reader without eyes or with a ruler needs.

    Attributes:
        name: file name without ending, and id in the page.
        title: what is shown.
        description: what is where, and what to take from it, in text.
        svg: the picture, to be put into the page as it is.
        png: the same as a file's bytes.
        header: columns of the table of the same numbers.
        rows: of that table.
    """

    name: str
    title: str
    description: str
    svg: Markup
    png: bytes
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)


def colour(role: str) -> str:
    """Return the light colour of a role, as matplotlib takes it."""
    return COLOURS[role][0]


def ramp_role(index: int, count: int) -> str:
    """Return the role of the blue for arm `index` of `count`, light for the smallest alpha."""
    if count <= 1:
        return "kd"
    return RAMP[round(index * (len(RAMP) - 1) / (count - 1))]


def marker(number: int) -> dict[str, str]:
    """Return matplotlib's marker and fill style of arm `number`: 60 that differ."""
    fill = FILLS[number // len(MARKERS) % len(FILLS)]
    return {"marker": MARKERS[number % len(MARKERS)], "fillstyle": fill}


def shorten(label: str, count: int = 24) -> str:
    """Return at most `count` characters of a label, the cut marked."""
    return label if len(label) <= count else label[: count - 1] + "\N{HORIZONTAL ELLIPSIS}"


def wrap(label: str) -> str:
    """Return a label broken into lines that fit the width of a chart."""
    lines = textwrap.wrap(label, LINE_CHARACTERS, break_on_hyphens=False)
    return "\n".join(lines) or label


def legend_height(labels: Sequence[str]) -> float:
    """Return the inches that `add_legend` takes below the axes."""
    if _fits_inside(labels):
        return 0.0
    lines = sum(wrap(label).count("\n") + 1 for label in labels)
    return LINE_INCHES * (-(-lines // _columns(labels)) + 1)


def add_legend(figure: Any, axes: Any, labels: Sequence[str], **inside: Any) -> None:
    """Add a legend of the labelled marks: inside the axes where it fits, or else below them.

    Args:
        figure: of the axes; `draw` is told the additional `legend_height(labels)`.
        axes: whose marks are labelled with `wrap(label)`.
        labels: of the marks.
        inside: of matplotlib's legend, for one inside.
    """
    if _fits_inside(labels):
        axes.legend(**inside)
    else:
        handles, texts = axes.get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower left", ncols=_columns(labels))


def _fits_inside(labels: Sequence[str]) -> bool:
    return len(labels) <= MAX_INSIDE and all(len(x) <= MAX_INSIDE_CHARACTERS for x in labels)


def _columns(labels: Sequence[str]) -> int:
    longest = max(len(label) for label in labels)
    return 3 if longest <= 10 else 2 if longest <= LINE_CHARACTERS // 2 - 4 else 1


def draw(
    name: str,
    title: str,
    description: str,
    paint: Callable[[Any], None],
    *,
    header: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    height: float = HEIGHT_INCHES,
) -> Chart:
    """Return the chart that `paint` draws on a matplotlib figure.

    Args:
        name: file name without ending; what is not plain in it becomes a dash, as it may hold
            names out of data.
        title: what is shown; the page prints it above the picture.
        description: for those who do not see the picture.
        paint: adds axes and marks to the figure given.
        header: columns of the table of its numbers.
        rows: of that table.
        height: in inches.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    name = re.sub(r"[^A-Za-z0-9_.-]", "-", name)

    look: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10.5,
        "axes.edgecolor": colour("soft"),
        "axes.labelcolor": colour("ink"),
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": colour("grid"),
        "grid.linewidth": 0.7,
        "xtick.color": colour("soft"),
        "ytick.color": colour("soft"),
        "xtick.labelcolor": colour("ink"),
        "ytick.labelcolor": colour("ink"),
        "text.color": colour("ink"),
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "path.simplify_threshold": 0.5,
    }
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        paint(figure)
        svg, png = io.StringIO(), io.BytesIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
        figure.suptitle(title, fontsize=10, color=colour("ink"))
        figure.savefig(png, format="png", dpi=PNG_DOTS_PER_INCH, facecolor=colour("paper"))
    picture = _for_page(svg.getvalue(), name, title, description)
    return Chart(name, title, description, picture, png.getvalue(), header, rows)


def require_matplotlib() -> None:
    """Check that charts can be drawn.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "build-report draws its charts with matplotlib: pip install 'smoothkd[eval]'"
        ) from error


def _for_page(svg: str, name: str, title: str, description: str) -> Markup:
    """Return matplotlib's SVG without header, fixed size and colours, its ids made its own."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', body)
    opening = (
        f'<svg class="chart" role="img" viewBox="{box[1] if box else ""}" '
        f'aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>'
    )
    inner = body[body.index(">") + 1 :]
    inner = re.sub(r' id="(?!m|p)[^"]*"', "", inner)  # markers and clip paths are referred to
    inner = re.sub(r' id="', f' id="{name}-', inner)
    inner = inner.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for role, (light, _) in COLOURS.items():
        inner = inner.replace(light, f"var(--{role})")
    # The page's own font, and no size in numbers that a browser's minimum would distort.
    inner = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", inner)
    inner = re.sub(r"\n\s*", "\n", inner)
    return Markup(opening + inner)  # drawn here; matplotlib escapes its texts
