"""`scanfoundry data build`: folders of scans into a data set, in parallel, resumable, to the same bytes every time."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import site_fingerprint, site_key
from scanfoundry.datasets.processes import Progress
from scanfoundry.datasets.shards.build_plan import Part
from scanfoundry.datasets.shards.build_summary import BuildSummary, PartSummary, summary_of
from scanfoundry.datasets.shards.finalize import complete_build
from scanfoundry.datasets.shards.format import MANIFEST
from scanfoundry.datasets.shards.options import BuildOptions
from scanfoundry.datasets.shards.parent import Parent
from scanfoundry.datasets.shards.prepare import PreparedBuild
from scanfoundry.datasets.shards.resume import BUILD, begin, begin_append, clear_finished, locked, part_of
from scanfoundry.datasets.shards.shard_worker import PARTIAL

__all__ = ["BuildOptions", "BuildSummary", "PartSummary", "append", "build", "build_part"]


def build(inputs: Sequence[Path], out: Path, options: BuildOptions, progress: Progress | None = None) -> BuildSummary:
    """Build a data set from files and folders, or continue a build that was interrupted.

    The same inputs, options and site key give the same bytes, whatever the number of workers, parts or interruptions.

    Args:
        inputs: files, folders, or patterns with '*'.
        out: folder of the data set. It is new, empty, or holds the interrupted build.
        options: what to store and how.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        Counts of what was stored and of what was left out.

    Raises:
        UserError: an input is missing or holds no scan, `out` holds something else or was begun with other inputs or
            options, or more than `options.max_bad` of the sources were refused (see quarantine.jsonl in `out`).
    """
    begun = PreparedBuild.of(inputs, out, options, progress)
    with locked(out):
        complete = begin(out, begun.parameters, begun.sources, begun.plan)
        if complete is not None:
            return summary_of(out, begun.plan, complete, 0)
        done = begun.write_shards(None)
        complete = complete_build(out, begun.parameters, begun.plan, done)
    return summary_of(out, begun.plan, complete, done.resumed, done.notes())


def build_part(
    inputs: Sequence[Path], out: Path, options: BuildOptions, part: Part, progress: Progress | None = None
) -> PartSummary:
    """Build one part of a data set, beside other parts of the same inputs and options, on this or other machines.

    Parts may share the folder `out`, and then share the survey of the inputs too, or have a folder each. `merge` makes
    a data set of them.

    Args:
        inputs, out, options, progress: as for `build`.
        part: which part, of how many.

    Raises:
        UserError: as `build` does.
    """
    begun = PreparedBuild.of(inputs, out, options, progress, part)
    own = part_of(begun.shards, part)
    resumed = len(own)
    with locked(out, part):
        if begin(out, begun.parameters, begun.sources, begun.plan, part) is None:
            resumed = begun.write_shards(part).resumed
    return PartSummary(
        out=out,
        part=str(part),
        shards=len(own),
        sources=sum(len(each.sources) for each in own),
        resumed_shards=resumed,
        all_shards=len(begun.shards),
        notes=begun.plan.notes,
    )


def append(inputs: Sequence[Path], out: Path, options: BuildOptions, progress: Progress | None = None) -> BuildSummary:
    """Add new scans to a data set. Its shards stay as they are; a new manifest names the old one, which is kept.

    What the data set was built from is not read again. Voxels that it holds already are left out. Near-duplicates are
    looked for among the new scans alone. A call that is killed can be repeated, and until it ends the data set is as
    it was.

    Args:
        inputs: files and folders; those that the data set was built from may be among them.
        out: folder of the data set.
        options: of the new scans. The site's key must be that of the data set.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises:
        UserError: `out` holds no data set, was built with another key, or a file of it has changed since; or as
            `build` raises it.
    """
    if not (out / MANIFEST).exists():
        raise UserError(f"{out} is no complete data set that scans could be appended to: build it first")
    parent = Parent(out)
    if parent.manifest.parameters.get("site") != site_fingerprint(site_key(options.key_file)):
        raise UserError(f"{out} was built with another site key: its patients would not be known again (--key-file)")
    begun = PreparedBuild.of(inputs, out, options, progress, parent=parent)
    with locked(out):
        if Parent(out).record != parent.record:
            raise UserError(f"{out} was changed by another build meanwhile; start again")
        if not begun.sources:
            clear_finished(out, parent)
            if not (out / PARTIAL / BUILD).exists():  # else of an append of other scans, which may be repeated
                shutil.rmtree(out / PARTIAL, ignore_errors=True)
            return summary_of(out, begun.plan, parent.manifest, 0)
        begin_append(out, begun.parameters, begun.sources, begun.plan, parent)
        done = begun.write_shards(None)
        complete = complete_build(out, begun.parameters, begun.plan, done, parent)
    return summary_of(out, begun.plan, complete, done.resumed, done.notes())
