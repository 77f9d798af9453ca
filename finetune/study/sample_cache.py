"""Cases at the plan's grid, kept in the run folder: each is read and resampled once for all trials of a study.

samples/<case>-<digest of the plan>-<digest of all that decides the sample>
"""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scanfoundry.configs.files import write_whole
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.checks.check import Checked
from scanfoundry.finetune.sample import Sample
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.study.sample_file import NotStorable, pack, unpack
from scanfoundry.finetune.task import Adapter
from scanfoundry.finetune.training.code_digest import with_code
from scanfoundry.finetune.training.features import digest_of

SAMPLES = "samples"  # the folder in a run folder
GB = 10**9
RESERVE = 2 * GB  # bytes of the disk that are left to what the study itself writes
# What of a specification does not decide how a case is read. Of the plan of a detection, `whole_scan` alone does.
_LATER = {
    "profiles", "inference", "flip_axes", "loss", "class_weights", "temperature", "standard", "anchors", "detection",
    "head", "probe", "members", "postprocess", "trained",
}  # fmt: skip


class SampleCache:
    """The samples of a study, whole or not there.

    A file that cannot be written or read costs nothing but the time to read its case again.

    Args:
        folder: where the samples lie; None keeps nothing.
        checked: what is known of the cases; a case is read again where its voxels, header or label changed.
        limit: bytes that all samples together may take. What comes later is not kept: a study goes through its cases
            in turn, and the oldest sample is the one that is needed next.
        log: takes a line for people.
    """

    def __init__(self, folder: Path | None, checked: Checked, limit: float, log: Callable[[str], None]) -> None:
        self._folder = folder if limit > 0 else None
        self._checked, self._limit, self._log = checked, limit, log
        self._full = False

    def tidy(self, spec: Spec) -> None:
        """Remove samples of another plan or of other code, and what a killed writer left."""
        if self._folder is None or not self._folder.is_dir():
            return
        current = _digest_of_plan(spec)
        for path in self._folder.iterdir():
            if path.name.split("-")[1:2] != [current]:
                path.unlink(missing_ok=True)

    def reader(self, adapter: Adapter[Any, Any]) -> "SampleReader":
        """What reads cases as `adapter` sees them."""
        return SampleReader(self, adapter)

    def get(self, case: Case, adapter: Adapter[Any, Any], plan: str, read: Callable[[], Sample[Any]]) -> Sample[Any]:
        """The sample of a case as `adapter` sees it; `read` gives it where it is not there yet.

        plan: the digest of the adapter's plan, see `SampleReader`.
        """
        if self._folder is None or case.key not in self._checked.headers:
            return read()
        path = self._folder / self._name(case, adapter.spec, plan)
        try:
            return unpack(path.read_bytes(), adapter.target_type)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            self._log(f"{path} is damaged: its case is read again")
            with suppress(OSError):
                path.unlink(missing_ok=True)
        sample = read()
        if not self._full:
            with suppress(NotStorable):
                self._write(path, pack(sample, adapter.target_type))
        return sample

    def _name(self, case: Case, spec: Spec, plan: str) -> str:
        checked, labelled = self._checked, case.target is not None
        content = (checked.digests if labelled else checked.scan_digests).get(case.key)
        whole = spec.detection.whole_scan if spec.detection is not None else None
        parts = [plan, whole, labelled, content, checked.headers[case.key], repr(case.stated), case.drawn_on]
        return f"{case.key}-{plan}-{digest_of(json.dumps(parts))}"

    def _write(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # whole scans are for nobody else
            used = sum(map(_size, path.parent.iterdir()))
            if used + len(content) > self._limit:
                self._stop(f"{path.parent} is full at {used / GB:.1f} GB (sample_cache_gb)")
            elif shutil.disk_usage(path.parent).free - len(content) < RESERVE:
                self._stop(f"the disk of {path.parent} has {RESERVE / GB:.0f} GB left")
            else:
                write_whole(path, lambda part: part.write_bytes(content))
        except OSError as error:
            self._stop(f"cannot write to {path.parent}: {error.strerror or error}")

    def _stop(self, why: str) -> None:
        self._full = True
        self._log(f"{why}: further cases are not kept there but read again by each trial")


class SampleReader:
    """Reads cases as one adapter sees them, from the cache where they are there."""

    def __init__(self, cache: SampleCache, adapter: Adapter[Any, Any]) -> None:
        self._cache, self._adapter, self._plan = cache, adapter, _digest_of_plan(adapter.spec)

    def labelled(self, case: Case) -> Sample[Any]:
        """As `Adapter.load`."""
        return self._cache.get(case, self._adapter, self._plan, lambda: self._adapter.load(case))

    def unlabelled(self, case: Case) -> Sample[Any]:
        """The sample of a case without a target."""
        return self._cache.get(case, self._adapter, self._plan, lambda: self._adapter.read(case)[1])


def _digest_of_plan(spec: Spec) -> str:
    """Of all that decides how cases are read, and of the code that reads them."""
    return digest_of(with_code(json.dumps(spec.model_dump(mode="json", exclude=_LATER), sort_keys=True)))


def _size(path: Path) -> int:
    """0 where another process has just renamed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
