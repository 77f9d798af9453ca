"""What is said where names have two readings: two candidates, and what to type."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from scanforge.configs.errors import UserError
from scanforge.datasets.labels.names import whole_parts_of
from scanforge.datasets.labels.words import rest_of

BUILD = "scanforge data build '{images}' --masks '{masks}'"


@dataclass(frozen=True)
class Doubt:
    """Says it in the words of a command.

    spelling     how patterns of images and masks are given there, with {images} and {masks}
    of_channels  how channels are
    root         the folder of the scans
    """

    spelling: str = BUILD
    of_channels: str = ""
    root: Path | None = None

    def scans(self, mask: Path, one: str, other: str) -> NoReturn:
        """A mask of two scans."""
        if whole_parts_of(one) == whole_parts_of(other):
            name = "/".join(whole_parts_of(one))
            raise UserError(f"two images are called '{name}': '{one}' and '{other}'; '{mask}' is of one: take one out")
        raise UserError(f"'{mask}' may be the mask of '{one}' or of '{other}': {self.advice(one, mask)}")

    def masks(self, scan: str, one: Path, other: Path) -> NoReturn:
        """Two masks of a scan."""
        raise UserError(
            f"two masks of one scan: '{one}' and '{other}' may both be of '{scan}' (several of one are called "
            f"SCAN_mask.png, SCAN_mask_1.png, ...): {self.advice(scan, one)}"
        )

    def channels(self, mask: Path, first: str, last: str) -> NoReturn:
        """A mask of scans whose numbers may be those of channels, or not."""
        raise UserError(
            f"'{mask}' may be the mask of '{first}', or of a case whose channels are '{first}' to '{last}': "
            f"{self.advice(first, mask)}{self.of_channels}"
        )

    def incomplete(self, mask: Path, scan: str, lacking: str) -> NoReturn:
        """A guess that does not pair all."""
        raise UserError(
            f"'{mask}' may be the mask of '{scan}', but {lacking}: a guess from names counts only where it pairs all "
            f"images and masks; {self.advice(scan, mask)}"
        )

    def advice(self, scan: str, mask: Path) -> str:
        """What to type."""
        images, masks = _patterns(scan, mask.name) or ("img_*.png", "mask_*.png")
        inside = self.root / PurePosixPath(scan).parent if self.root is not None else PurePosixPath(scan).parent
        text = self.spelling.format(images=inside / images, masks=mask.parent / masks)
        return f"state it with patterns, as in {text} (what '*' stands for must be the same in both)"


def _patterns(scan: str, mask: str) -> tuple[str, str] | None:
    """Two names with '*' for what both share: ('img_*.png', 'mask_*.png'); None where nothing simple shows it."""
    name = PurePosixPath(scan).name
    rest = rest_of(mask.split(".")[0])
    if not rest:
        return None
    both = [_starred(each, rest) for each in (name, mask)]
    if None in both or both[0][0] != both[1][0]:  # type: ignore[index]
        return None
    return both[0][1], both[1][1]  # type: ignore[index]


def _starred(name: str, tokens: Sequence[str]) -> tuple[str, str] | None:
    match = re.search(r"[\W_]*".join(map(re.escape, tokens)), name, re.IGNORECASE)
    return (match[0], f"{name[: match.start()]}*{name[match.end() :]}") if match else None
