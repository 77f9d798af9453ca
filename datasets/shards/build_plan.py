"""What is known of a build before the first scan is read: kept in its partial folder, for its parts and their merge."""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import Quarantined
from scanfoundry.datasets.discovery.sources import shard_name

PLAN = "plan.json"
_PART = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


class BuildPlan(BaseModel):
    """What a build has to do.

    Attributes:
        first: number of its first shard, which is not 0 where scans are appended.
        shards: how many it writes at most; those without a scan that can be stored leave no file.
        sources: files, series and videos to read; `source_bytes`: their size.
        unused_labels: labels that are of no scan.
        notes: what a person should know.
        none: files that are no scans, or cannot be any.
    """

    first: int = 0
    shards: int
    sources: int
    source_bytes: int
    unused_labels: int
    notes: list[str]
    none: list[Quarantined]

    @property
    def names(self) -> list[str]:
        """Of all shards, in order."""
        return [shard_name(self.first + number) for number in range(self.shards)]


@dataclass(frozen=True)
class Part:
    """Part `number` of `count` of a build: every `count`-th shard, from the `number`-th on (counted from 1)."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str) -> "Part":
        """From 'number/count'.

        Raises:
            UserError: that is no part.
        """
        found = _PART.fullmatch(text)
        part = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= part.number <= part.count:
            raise UserError(f"--part {text}: give the number of the part and how many there are, as in --part 2/8")
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def folder(self) -> str:
        """The name of its own folder below the partial one."""
        return f"part-{self.number}-of-{self.count}"

    @property
    def share(self) -> float:
        """Where in the whole it begins, from 0 to 1."""
        return (self.number - 1) / self.count


def parts_begun(partial: Path) -> list[Part]:
    """The parts that have begun, by their folders."""
    found = (re.fullmatch(r"part-(\d+)-of-(\d+)", path.name) for path in sorted(partial.glob("part-*-of-*")))
    return [Part(int(each[1]), int(each[2])) for each in found if each is not None]
