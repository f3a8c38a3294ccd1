"""One page of HTML that needs nothing beside itself: figures are inline SVG, and every name is escaped."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

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
        """Whether the figure wants both columns."""
        return self.figure is not None and self.figure.get_figwidth() > 7


@dataclass(frozen=True)
class Page:
    title: str
    cell: str
    """The answer in words."""
    accuracy: str
    """In percent, with its standard error."""
    test: str
    """Of the test set; with_test() replaces it."""
    facts: Mapping[str, str]
    tied: Table
    sections: Sequence[Section]
    command: str
    """That makes the page again."""
    versions: Mapping[str, str]


def render(page: Page) -> str:
    """HTML."""
    environment = Environment(
        loader=PackageLoader("ddae", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters["svg"] = svg
    return environment.get_template("page.html").render(page=page)


def with_test(html: str, test: str) -> str:
    """The page with another sentence about the test set."""
    return re.sub(r'(?<=<p id="test">).*?(?=</p>)', lambda _: str(escape(test)), html, count=1, flags=re.DOTALL)


def svg(section: Section) -> Markup:
    """The section's figure, as wide as its place, whose black is the colour of the page's text."""
    import matplotlib

    assert section.figure is not None
    buffer = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ddae", "image.composite_image": False}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        section.figure.savefig(buffer, format="svg", transparent=True, dpi=150, metadata=no_metadata)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace("#000000", "currentColor")
    drawing = re.sub(r' id="[a-z]+(Collection|\.axis|Axis)?_[\d_]+"', "", drawing)  # every figure has the same ones
    width, height = (72 * inches for inches in section.figure.get_size_inches())
    opening = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {:.1f} {:.1f}" style="{}" xmlns:xlink="{}">').format(
        section.alt, width, height, f"min-width:{0.7 * width:.0f}px;max-width:{1.7 * width:.0f}px",
        "http://www.w3.org/1999/xlink",
    )  # fmt: skip
    return opening + Markup(drawing[drawing.index(">") + 1 :])
