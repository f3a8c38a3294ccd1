"""One page of HTML that needs nothing beside itself: figures are inline SVG, and every name is escaped."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One question, a picture or a table of it, and what to conclude."""

    title: str
    conclusion: str
    how_to_read: str = ""
    figure: "Figure | None" = None
    alt: str = ""
    """What the figure shows, for who cannot see it."""
    table: Table | None = None

    @property
    def wide(self) -> bool:
        """Whether the figure or the table wants both columns."""
        cells = [cell for row in self.table.rows for cell in row] if self.table else []
        return max(map(len, cells), default=0) > 32 or (self.figure is not None and self.figure.get_figwidth() > 7)


PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
WORDS = {
    "feature": """Numbers that stand for an image: what one block of the network holds when it is shown the image with
noise added. The network was trained to remove noise, never to classify, and stays as it is.""",
    "block": """A part of the network whose output can be read as a feature. Shallow blocks see edges and colours,
blocks in the middle see whole objects, the last ones turn them back into pixels.""",
    "timestep, t": "How much noise is added, in the network's own counting.",
    "sigma": """The same as a ratio of noise to image, which can be compared between networks: 0.1 is hardly to be seen,
at 1 there is as much noise as image.""",
    "pooling": """A block holds a map; 2 x 2 pooling averages it to 2 x 2 numbers a channel. Coarser pooling is cheaper
and tells less about where things are.""",
    "head": """The small classifier that is trained on the feature: linear is one weighted sum a class, an mlp has a
hidden layer.""",
    "cell, trial": "A cell is one choice of everything that is searched; to train and score it is a trial.",
    "tied, lost": """Statistically tied: when the val images are resampled (paired bootstrap, 95 %), the cell is not
reliably worse than the best. Lost are the points by which it is below the best on the same val images.""",
    "forward, features": """What a cell costs to use: the share of a forward pass after which the network stops, and the
numbers that the head reads of an image. The cheapest needs the least of a pass and, of equals, the fewest numbers.""",
    "fit": "Seconds that training the head took in this sweep, on all images and with all of its settings.",
    "raw pixels": "The same head without the network, which the network must beat.",
    "ridge, screening": """A linear classifier that is solved in one step. Screening judges every block at every
timestep by it, on few images, each predicted by a fit to all the others, before any head is trained.""",
    "val, test": """Val images are set aside from the training images to choose by; their accuracy is therefore a little
too good. Test images are looked at once, after the choice.""",
    "balanced accuracy": """The mean of the accuracies of the classes, in which small classes count as much as large
ones.""",
    "\N{PLUS-MINUS SIGN}": "One standard error. Differences below two of them are not differences.",
    "alignment, uniformity": """Measures that need no labels: how near two noised copies of one image stay, and how
evenly different images spread.""",
    "consensus": "The ranking without labels: alignment, uniformity and contrast together.",
    "Spearman": "Agreement of two orders: 1 is the same order, 0 is none, -1 the reverse.",
}
"""What a page explains to those who have not read the papers."""


@dataclass(frozen=True)
class Page:
    title: str
    cell: str
    """The answer in words."""
    accuracy: str
    """In percent, with its standard error."""
    test: str
    """What is known of the test set; with_test() replaces it."""
    facts: Mapping[str, str]
    tied: Table
    sections: Sequence[Section]
    command: str
    """That makes the page again."""
    versions: Mapping[str, str]
    says: str = "of the val images are classified correctly by the feature at"
    """What the number is."""
    words: Mapping[str, str] = field(default_factory=lambda: WORDS)
    """Word -> what it means here."""


def render(page: Page) -> str:
    """HTML."""
    environment = Environment(
        loader=PackageLoader("ddae", "report"),
        autoescape=True,
        finalize=typeset,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": svg, "breakable": breakable}
    return environment.get_template("page.html").render(page=page)


def with_test(html: str, test: str) -> str:
    """The page with another sentence about the test set."""
    return re.sub(r'(?<=<p id="test">).*?(?=</p>)', lambda _: escape(typeset(test)), html, count=1, flags=re.DOTALL)


def typeset(value: Any) -> Any:
    """As print has it; what is marked up already stays."""
    typed = isinstance(value, str) and not isinstance(value, Markup)
    return re.sub(r"(?<=\d) ?%(?!\w)", "\N{NO-BREAK SPACE}%", value.replace(" +- ", PLUS_MINUS)) if typed else value


def breakable(text: str) -> Markup:
    """Text whose long names may be broken after dots and slashes."""
    typed = str(escape(typeset(text)))
    return Markup(re.sub(r"\S{32,}", lambda name: re.sub(r"([./])(?=\w)", r"\1<wbr>", name[0]), typed))


def svg(section: Section) -> Markup:
    """The section's figure, as wide as its place, whose black is the colour of the page's text."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    assert section.figure is not None
    for patch in [section.figure.patch, *(axes.patch for axes in section.figure.axes)]:
        patch.set_visible(False)
    buffer = StringIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ddae", "image.composite_image": False}),
        warnings.catch_warnings(action="ignore", category=UserWarning),  # of letters that the font lacks
    ):
        FigureCanvasSVG(section.figure).print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index(">", drawing.index("<svg")) + 1 :].replace("#000000", "currentColor")
    drawing = re.sub(r' id="[A-Za-z.]+_[\d_]+"', "", drawing)  # the same ones in every figure
    wide = section.figure.get_figwidth() > 7
    width, height = (72 * inches for inches in section.figure.get_size_inches())
    opening = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {:.1f} {:.1f}" style="{}">').format(
        section.alt, width, height, f"min-width:{0.8 * width:.0f}px;max-width:{(1.2 if wide else 1.7) * width:.0f}px"
    )
    return opening + Markup(drawing)
