"""Which columns of a table hold boxes, by the names that annotation tools and public data sets give them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scanfoundry.configs.errors import UserError

# Of each way: whether the second column is the 'end', the 'size', or the size about a 'centre'; names along x and y.
_WAYS = (
    *(("end", (f"x{low}", f"x{high}"), (f"y{low}", f"y{high}")) for low, high in (("0", "1"), ("1", "2"))),
    *(("end", (f"x{low}", f"x{high}"), (f"y{low}", f"y{high}")) for low, high in (("min", "max"), ("start", "end"))),
    ("end", ("minx", "maxx"), ("miny", "maxy")),
    ("end", ("xtl", "xbr"), ("ytl", "ybr")),
    ("end", ("left", "right"), ("top", "bottom")),
    *(("size", ("x", w), ("y", h)) for w, h in (("w", "h"), ("width", "height"))),
    *(("size", ("left", w), ("top", h)) for w, h in (("w", "h"), ("width", "height"))),
    *(("centre", ("cx", w), ("cy", h)) for w, h in (("w", "h"), ("width", "height"))),
    *(("centre", ("xcenter", w), ("ycenter", h)) for w, h in (("w", "h"), ("width", "height"))),
    *(("centre", ("xcentre", w), ("ycentre", h)) for w, h in (("w", "h"), ("width", "height"))),
)
_DEPTHS = {
    "end": (("z0", "z1"), ("zmin", "zmax"), ("z1", "z2"), ("zstart", "zend"), ("minz", "maxz")),
    "size": (("z", "d"), ("z", "depth")),
    "centre": (("cz", "d"), ("cz", "depth"), ("zcenter", "depth"), ("zcentre", "depth")),
}
KNOWN = "x0, y0, x1, y1; xmin, ymin, xmax, ymax; x1, y1, x2, y2; x, y, w, h"
_WHOLE = ("bbox", "box", "boundingbox", "bboxes", "boxes")
Corners = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class BoxColumns:
    """Pairs of columns: where a box begins along x, y (and z, where there is depth), and its end or size."""

    way: str
    x: tuple[str, str]
    y: tuple[str, str]
    z: tuple[str, str] | None = None

    @property
    def names(self) -> list[str]:
        """All columns."""
        return [*self.x, *self.y, *(self.z or ())]

    def corners(self, cells: Mapping[str, str]) -> Corners | None:
        """(x0, y0, z0, x1, y1, z1) in voxels; None where the line has no box.

        Raises:
            ValueError: a cell is no number.
        """
        if not any(cells[name] for name in (*self.x, *self.y)):
            return None
        x0, x1 = self._ends(cells, self.x)
        y0, y1 = self._ends(cells, self.y)
        z0, z1 = self._ends(cells, self.z) if self.z and any(cells[name] for name in self.z) else (0.0, 1.0)
        return x0, y0, z0, x1, y1, z1

    def _ends(self, cells: Mapping[str, str], pair: tuple[str, str]) -> tuple[float, float]:
        first, second = (float(cells[name]) for name in pair)
        if self.way == "end":
            return first, second
        return (first, first + second) if self.way == "size" else (first - second / 2, first + second / 2)


def find_box_columns(path: Path, columns: Sequence[str]) -> BoxColumns | None:
    """The columns of the boxes, None where there are none.

    Raises:
        UserError: the columns may be read in two ways.
    """
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(_plain(column), column)
    fitting = [way for way in _WAYS if {*way[1], *way[2]} <= by_name.keys()]
    # 'width' and 'height' beside w and h, or beside two corners, are those of the image.
    short = [way for way in fitting if way[1][1] != "width"]
    ends = [way for way in fitting if way[0] == "end"]
    fitting = ends if ends and short == ends else short or fitting
    if not fitting:
        return None
    if len(fitting) > 1:
        one, other = (", ".join(by_name[name] for name in (*x, *y)) for _, x, y in fitting[:2])
        raise UserError(f"{path}: its boxes may be read as {one} or as {other}: keep the columns of one way")
    way, x, y = fitting[0]
    z = next((pair for pair in _DEPTHS[way] if set(pair) <= by_name.keys()), None)
    pairs = [tuple(by_name[name] for name in pair) for pair in (x, y, z) if pair]
    return BoxColumns(way, *pairs)  # type: ignore[arg-type]


def whole_boxes(columns: Sequence[str]) -> str | None:
    """A column that holds four numbers in one cell: nobody says which."""
    return next((column for column in columns if re.sub(r"[^a-z]", "", column.lower()) in _WHOLE), None)


def _plain(column: str) -> str:
    """'Bbox [x', 'x_min' and 'box.xMin' without what is only their manner."""
    plain = re.sub(r"[^a-z0-9]", "", column.lower())
    for before in ("bbox", "box"):
        plain = plain.removeprefix(before) or plain
    return plain
