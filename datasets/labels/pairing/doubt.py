"""The messages for names with two readings: the two candidates, and what to type instead."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.pairing.names import whole_parts_of
from scanfoundry.datasets.labels.pairing.stated import patterns_of

BUILD = "scanfoundry data build '{images}' --masks '{masks}'"


@dataclass(frozen=True)
class Doubt:
    """Raises the errors for names with two readings, in the words of a command.

    Attributes:
        spelling: how patterns of images and masks are given there, with {images} and {masks}.
        of_channels: how channels are given.
        of_lists: how a list of both is given, where the command takes one.
        root: the folder of the scans.
        scans_known: all scans, below `root`.
        masks_known: all masks, as (folder, path below it).
    """

    spelling: str = BUILD
    of_channels: str = ""
    of_lists: str = ""
    root: Path | None = None
    scans_known: Sequence[str] = ()
    masks_known: Sequence[tuple[Path, str]] = ()

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
        found = self.patterns(scan, mask)
        images, masks = found or (Path("DIR/img_*.png"), Path("DIR/mask_*.png"))
        text = self.spelling.format(images=images, masks=masks)
        return f"state it with patterns, as in {text} (what '*' stands for must be the same in both){self.of_lists}"

    def patterns(self, scan: str, mask: Path) -> tuple[Path, Path] | None:
        """Patterns of images and masks, `scan` and `mask` perhaps among them; None where none pairs them."""
        root = next((root for root, relative in self.masks_known if root / relative == mask), mask.parent)
        masks = [relative for each, relative in self.masks_known if each == root] or [mask.name]
        shared = self.root is not None and self.root.resolve() == root.resolve()
        one = (scan, mask.relative_to(root).as_posix())
        found = patterns_of(self.scans_known or [scan], masks, one, shared)
        return found and ((self.root or Path()) / found[0], root / found[1])
