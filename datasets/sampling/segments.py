"""The segments of a run whose sources have grown: from which step on it draws from which manifests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from scanfoundry.configs.errors import UserError


@dataclass(frozen=True)
class Segment:
    """From optimiser step `step` on, the sources have the manifests with these sha256, by the source's name."""

    step: int
    manifests: Mapping[str, str]


def segments_of(stream: Mapping[str, Any]) -> list[Segment]:
    """The segments that a checkpoint's seal tells; one of a run whose sources never grew tells a single one."""
    grown = [Segment(each["step"], each["manifests"]) for each in stream.get("grown", [])]
    return [Segment(0, stream["manifests"]), *grown]


def sealed(segments: Sequence[Segment]) -> dict[str, Any]:
    """What `segments_of` takes back.

    `manifests` are those that the run began with, so that versions which know of no growth refuse to continue.
    """
    first, *grown = segments
    entries = [{"step": each.step, "manifests": dict(each.manifests)} for each in grown]
    return {"manifests": dict(first.manifests)} | ({"grown": entries} if entries else {})


def continued(
    known: Sequence[Segment],
    step: int,
    manifests: Mapping[str, str],
    earlier: Mapping[str, Mapping[str, str]],
    allow_grown: bool,
) -> list[Segment]:
    """The segments of a run that goes on, with a new one where scans were appended to its sources.

    Args:
        known: the segments so far.
        step: that it goes on from.
        manifests: sha256 of each source's manifest, by the source's name.
        earlier: for sources that scans were appended to, the files of the earlier manifests by their sha256.
        allow_grown: whether a new segment may begin.

    Raises:
        UserError: a source has neither the manifest that the run knows nor, where it may grow, a descendant of it.
    """
    last = known[-1].manifests
    for name, digest in manifests.items():
        if last.get(name) == digest:
            continue
        file = earlier.get(name, {}).get(last.get(name, ""))
        if file is None:
            raise UserError(_other(known, name, digest))
        if not allow_grown:
            raise UserError(
                f"scans were appended to source '{name}' since step {step}: set data.allow_grown=true to go on with "
                f"them, or give a folder of the same files with {file} as manifest.json"
            )
    return list(known) if dict(last) == dict(manifests) else [*known, Segment(step, manifests)]


def _other(known: Sequence[Segment], name: str, digest: str) -> str:
    """What is wrong with a manifest that is not the last one, nor a descendant of it."""
    for each, following in pairwise(known):
        if each.manifests.get(name) == digest:
            return (
                f"source '{name}' has lost the scans that were appended to it, which the run draws from since step "
                f"{following.step}; restore them, or choose a new run_dir"
            )
    return (
        f"the shards of source '{name}' are neither those that the run was trained on nor these and appended ones; "
        "restore them, or choose a new run_dir"
    )
