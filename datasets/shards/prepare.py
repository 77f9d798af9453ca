"""The first half of a build: its sources are found, checked, and assigned to shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import Quarantined
from scanfoundry.datasets.discovery.scan_headers import find_dicom
from scanfoundry.datasets.discovery.sources import PlannedSource, ShardPlan, assign_shards, find_sources
from scanfoundry.datasets.identity import site_key
from scanfoundry.datasets.labels.label_index import open_labels
from scanfoundry.datasets.labels.tables.table import Columns
from scanfoundry.datasets.processes import Progress
from scanfoundry.datasets.readers import SUFFIXES
from scanfoundry.datasets.readers.frames import find_frame_folders
from scanfoundry.datasets.shards.build_plan import BuildPlan, Part
from scanfoundry.datasets.shards.build_progress import BuildProgress
from scanfoundry.datasets.shards.build_summary import by_suffix, notes_on_large
from scanfoundry.datasets.shards.options import BuildOptions
from scanfoundry.datasets.shards.parent import Parent
from scanfoundry.datasets.shards.resume import check_free, finished_shards, joins_equal, parameters_of, part_of
from scanfoundry.datasets.shards.shard_pool import run_tasks
from scanfoundry.datasets.shards.shard_worker import PARTIAL, SURVEY, ShardTask

_NEAR = "near-duplicates were looked for among the new scans alone"
_NOTHING = "all of these scans are in it already; nothing was done"


@dataclass(frozen=True)
class PreparedBuild:
    """A build whose sources are found and assigned to shards.

    Attributes:
        out: folder of the data set.
        key: the site's key.
        sources: what is to be read, sorted by keyed hash; `shards`: the same, by shard.
        plan: what of it is kept for parts and their merge.
        parameters: what the bytes of the data set depend on.
        report: called with what is being done, how much of it, and of how much.
        join_equal: see `resume.joins_equal`.
    """

    out: Path
    options: BuildOptions
    key: bytes
    sources: list[PlannedSource]
    shards: list[ShardPlan]
    plan: BuildPlan
    parameters: dict[str, Any]
    report: Progress
    join_equal: bool = True

    @classmethod
    def of(
        cls,
        inputs: Sequence[Path],
        out: Path,
        options: BuildOptions,
        progress: Progress | None,
        part: Part | None = None,
        parent: Parent | None = None,
    ) -> "PreparedBuild":
        """Find the sources of a build.

        Args:
            inputs, out, options, progress: see `build.build`.
            part: of the build, that this process is to write.
            parent: the data set that new scans are appended to. What it was built from is left out.

        Raises:
            UserError: an input is missing, holds no scan, or contradicts another.
        """
        key = site_key(options.key_file)
        _check_apart(inputs, out)
        check_free(out)
        report = progress or (lambda what, done, total: None)
        columns = Columns(asked=tuple(options.label_columns), insist=options.allow_identifying)
        label_index = open_labels(options.labels, options.masks, options.boxes_from_masks, columns, images=inputs)
        kept, share = out / PARTIAL / SURVEY, part.share if part else 0.0
        sources, none = find_sources(
            inputs,
            key,
            options.patient_regex,
            label_index,
            lambda root, files: find_dicom(root, files, options.workers, report, kept, share),
            find_frame_folders if options.frames else None,
        )
        _check_any(inputs, sources, none)
        unused = len(label_index.unused([each.source.relative for each in sources]))
        notes = [*label_index.notes, *(f"{number} {reason}" for reason, number in label_index.left_out.items())]
        if parent is not None:
            found, sources = len(sources), parent.new(sources)
            notes = [f"{found - len(sources)} of them were in it already", _NEAR, *notes] if sources else [_NOTHING]
        shard_bytes, first = int(options.shard_mb * 2**20), 0 if parent is None else parent.next_shard
        shards = assign_shards(sources, shard_bytes, first)
        plan = BuildPlan(
            first=first,
            shards=len(shards),
            sources=len(sources),
            source_bytes=sum(each.source.size for each in sources),
            unused_labels=unused,
            notes=[*notes, *notes_on_large(sources, shard_bytes)],
            none=none,
        )
        join = joins_equal(out)
        parameters = parameters_of(options.model_dump(), sources, key, join)
        return cls(out, options, key, sources, shards, plan, parameters, report, join)

    def write_shards(self, part: Part | None) -> BuildProgress:
        """Write the shards of a part, or all, that are not finished yet."""
        own = part_of(self.shards, part)
        done = finished_shards(self.out, [each.name for each in own])
        here = sum(len(each.sources) for each in own)
        progress = BuildProgress(
            self.out, len(self.sources), self.options.max_bad, done, self.plan.none, self.report, here
        )
        finished, scratch, chosen = set(progress.shards), part.folder if part else "", self.options
        common = self.out, self.key, chosen.modality, chosen.codec
        tasks = [
            ShardTask(each, *common, scratch=scratch, keep_jpeg=chosen.keep_jpeg, join_equal=self.join_equal)
            for each in own
            if each.name not in finished
        ]
        run_tasks(tasks, self.options.workers, progress)
        return progress


def _check_any(inputs: Sequence[Path], sources: Sequence[object], none: Sequence[Quarantined]) -> None:
    if sources:
        return
    counts = by_suffix(line.path for line in none)
    seen = ", ".join(f"{number} {suffix}" for suffix, number in counts.items()) or "nothing"
    raise UserError(
        f"no scans in {', '.join(map(str, inputs))} (found {seen}); read are DICOM and {', '.join(SUFFIXES)}"
    )


def _check_apart(inputs: Sequence[Path], out: Path) -> None:
    for given in inputs:
        if Path(given).is_dir() and out.resolve().is_relative_to(Path(given).resolve()):
            raise UserError(f"the output folder {out} lies in the input folder {given}; put it elsewhere")
