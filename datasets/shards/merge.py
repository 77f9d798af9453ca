"""`scanfoundry data merge`: the parts of a build become a data set, the same as one build of everything."""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_bytes
from scanfoundry.datasets.processes import Progress
from scanfoundry.datasets.shards.build_plan import PLAN, BuildPlan, Part, parts_begun
from scanfoundry.datasets.shards.build_progress import BuildProgress
from scanfoundry.datasets.shards.build_summary import BuildSummary, summary_of
from scanfoundry.datasets.shards.finalize import complete_build, final_path
from scanfoundry.datasets.shards.format import MANIFEST, SOURCES, Manifest, index_name, parse
from scanfoundry.datasets.shards.resume import BUILD, clear_killed, finished_shards, locked, part_of, same
from scanfoundry.datasets.shards.shard_worker import PARTIAL, result_path
from scanfoundry.datasets.shards.thumbnail import thumbnails_path


def merge(folders: Sequence[Path], out: Path, max_bad: float = 0.10, progress: Progress | None = None) -> BuildSummary:
    """Make one data set of the parts of a build. A call that is killed can be repeated.

    Duplicates and near-duplicates are found across all parts, and the bytes are those of one build of everything.

    Args:
        folders: those that the parts were built in, or the one that they share.
        out: folder of the data set: one of `folders`, or a new one.
        max_bad: share of all sources that may be refused.
        progress: called with what is done, how much of it, and of how much.

    Returns:
        Counts of what was stored and of what was left out.

    Raises:
        UserError: a shard is missing, the parts are of different builds, or more sources were refused.
    """
    others = [folder for folder in folders if folder.resolve() != out.resolve()]
    for folder in folders:
        if not (folder / PARTIAL / BUILD).exists() and not (folder / MANIFEST).exists():
            raise UserError(f"{folder} holds no part of a build; name the folders that were given as --out")
    with ExitStack() as stack:
        stack.enter_context(locked(out))
        for folder in others:
            stack.enter_context(locked(folder))
        if (out / MANIFEST).exists() and not any((folder / PARTIAL / PLAN).exists() for folder in [out, *folders]):
            return _merged_before(out)
        plan, parameters = _agreed(out, folders)
        if (out / MANIFEST).exists():
            manifest = parse(Manifest, (out / MANIFEST).read_bytes(), str(out / MANIFEST))
            same(out, manifest.parameters, parameters)
            shutil.rmtree(out / PARTIAL, ignore_errors=True)
            return summary_of(out, plan, manifest, plan.shards)
        clear_killed(out)
        for folder in others:
            _gather(folder, out, plan)
        done = BuildProgress(
            out, plan.sources, max_bad, finished_shards(out, plan.names), plan.none, progress or (lambda *told: None)
        )
        _check_all_there(plan, done.shards, [out, *others])
        done.check_ceiling()
        return summary_of(out, plan, complete_build(out, parameters, plan, done), plan.shards, done.notes())


def _agreed(out: Path, folders: Sequence[Path]) -> tuple[BuildPlan, dict[str, Any]]:
    """The plan and parameters of the build, which `out` gets where it is new."""
    begun = [folder for folder in [out, *folders] if (folder / PARTIAL / PLAN).exists()]
    parameters = [json.loads((folder / PARTIAL / BUILD).read_text(encoding="utf-8")) for folder in begun]
    for each in parameters:
        each.pop("modified")  # each machine may have its own copy of the inputs
    for folder, each in zip(begun, parameters, strict=True):
        same(folder, each, parameters[0])
    (out / PARTIAL).mkdir(exist_ok=True)
    for name in (BUILD, SOURCES, PLAN):
        if not (out / PARTIAL / name).exists():
            write_bytes(out / PARTIAL / name, (begun[0] / PARTIAL / name).read_bytes())
    return parse(BuildPlan, (begun[0] / PARTIAL / PLAN).read_bytes(), str(begun[0] / PARTIAL / PLAN)), parameters[0]


def _merged_before(out: Path) -> BuildSummary:
    manifest = parse(Manifest, (out / MANIFEST).read_bytes(), str(out / MANIFEST))
    plan = BuildPlan(
        shards=len(manifest.shards),
        sources=manifest.parameters["sources"],
        source_bytes=0,
        unused_labels=0,
        notes=["it was complete already"],
        none=[],
    )
    return summary_of(out, plan, manifest, 0)


def _gather(folder: Path, out: Path, plan: BuildPlan) -> None:
    """The finished shards of a folder into the partial folder of `out`, as links where that is possible."""
    there = {name for name, _ in finished_shards(out, plan.names)}
    for name, result in finished_shards(folder, [name for name in plan.names if name not in there]):
        if final_path(folder, name).exists():
            raise UserError(f"{folder} was merged by itself in part; give it as --out")
        files = [] if result.record is None else [folder / PARTIAL / name, folder / PARTIAL / index_name(name)]
        # The result comes last: a shard with one is whole.
        for path in [*files, thumbnails_path(folder / PARTIAL, name), result_path(folder, name)]:
            target = out / PARTIAL / path.name
            target.unlink(missing_ok=True)
            draft = target.with_name(f".{target.name}.{os.getpid()}.part")
            draft.unlink(missing_ok=True)
            try:
                os.link(path, draft)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, draft)
            os.replace(draft, target)


def _check_all_there(plan: BuildPlan, finished: Sequence[str], folders: Sequence[Path]) -> None:
    """UserError where a shard is missing; the text says of which part."""
    missing = set(plan.names) - set(finished)
    if not missing:
        return
    begun = [part for folder in folders for part in parts_begun(folder / PARTIAL)]
    counts = {part.count for part in begun}
    if len(counts) != 1:
        raise UserError(f"{len(missing)} of {plan.shards} shards are not built yet: run all parts to their end first")
    (count,) = counts
    lacking = [
        number for number in range(1, count + 1) if missing.intersection(part_of(plan.names, Part(number, count)))
    ]
    parts = ", ".join(f"{number}/{count}" for number in lacking)
    raise UserError(
        f"{len(missing)} of {plan.shards} shards are not built yet: run 'data build' with the same inputs and "
        f"--part {parts} to its end first"
    )
