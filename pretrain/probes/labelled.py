"""Which labelled scans a probe trains and tests on. No patient is on both sides."""

from collections import Counter
from dataclasses import dataclass, replace

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.crop import mix
from scanfoundry.datasets.identity import fraction
from scanfoundry.datasets.shards.format import SampleEntry
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.pretrain.config.probes import ProbeDataConfig

DEFAULT_TEST = 0.3  # of the patients, where none are held out of pre-training


@dataclass(frozen=True)
class LabelledScan:
    """A scan with its place in the data set, its class (segmentation: -1) and whether it is tested on."""

    shard: int
    sample: int
    entry: SampleEntry
    label: int
    test: bool


@dataclass(frozen=True)
class Chosen:
    """The scans of a probe in a fixed order, and the names of their classes by number (segmentation: none)."""

    scans: list[LabelledScan]
    classes: list[str]

    def side(self, test: bool) -> list[LabelledScan]:
        """Those that are tested on, or trained on."""
        return [scan for scan in self.scans if scan.test == test]

    def patients(self, test: bool) -> list[str]:
        """Sorted hashes of the patients on that side."""
        return sorted({scan.entry.patient for scan in self.side(test)})


def choose(data: DataSet, config: ProbeDataConfig, holdout: float, masks: bool, target: str | None) -> Chosen:
    """At most `config.scans` scans with masks, or with a class of `target`.

    Scans found under several patients are left out: they could not be on one side. So are classes with fewer than two
    training scans or no test scan. UserError, without the probe's name, where what is left cannot be probed.
    """
    where = data.store.shown("")
    share = config.test_fraction or holdout or DEFAULT_TEST
    found = [
        LabelledScan(number, sample, entry, -1, fraction(entry.patient) < share)
        for number, shard in enumerate(data.manifest.shards)
        for sample, entry in enumerate(data.index(shard).samples)
        if not entry.also
    ]
    if len(config.crop) == 3:
        found = [scan for scan in found if scan.entry.shape[1] > 1 and not scan.entry.frames]
        if not found:
            raise UserError(f"{where} has no volume for a crop of three numbers; give `crop` as height and width")
    found.sort(key=lambda scan: (mix(int(scan.entry.patient[:16], 16), 1), scan.entry.key))
    if masks:
        return _check_enough(_with_masks(found, where)[: config.scans], where)
    titled = _with_classes(found, target, where)[: config.scans]
    return _numbered(_check_enough([scan for scan, _ in titled], where), [name for _, name in titled], where)


def _with_masks(found: list[LabelledScan], where: str) -> list[LabelledScan]:
    masked = [scan for scan in found if scan.entry.mask is not None]
    if not masked:
        raise UserError(f"no scan of {where} has a mask; build it with `scanfoundry data build --masks`")
    return masked


def _with_classes(found: list[LabelledScan], target: str | None, where: str) -> list[tuple[LabelledScan, str]]:
    classes = [(scan, scan.entry.labels.classes) for scan in found if scan.entry.labels is not None]
    known = sorted({name for _, given in classes for name in given})
    if not known:
        raise UserError(f"no scan of {where} has a class; build it with `scanfoundry data build --labels`")
    if target is None and len(known) > 1:
        raise UserError(f"the scans of {where} have several classes ({', '.join(known)}); set `target` to one of them")
    wanted = target or known[0]
    if wanted not in known:
        raise UserError(f"no scan of {where} has a class '{wanted}'; there are {', '.join(known)}")
    return [(scan, given[wanted]) for scan, given in classes if wanted in given]


def _check_enough(scans: list[LabelledScan], where: str) -> Chosen:
    chosen = Chosen(scans, [])
    train, test = (len(chosen.patients(side)) for side in (False, True))
    if train + test == 1:
        raise UserError(f"the labelled scans of {where} are of one patient: nothing is left to test on")
    if train < 2 or test < 1:
        raise UserError(
            f"the labelled scans of {where} have {train} training and {test} test patients, at least 2 and 1 are "
            "needed; change `test_fraction`, or give more scans"
        )
    return chosen


def _numbered(chosen: Chosen, names: list[str], where: str) -> Chosen:
    """With numbers of the classes that occur often enough on both sides."""
    if len(set(names)) == 1:
        raise UserError(f"the labelled scans of {where} are all of one class ('{names[0]}')")
    train, test = (
        Counter(name for scan, name in zip(chosen.scans, names, strict=True) if scan.test == side)
        for side in (False, True)
    )
    classes = sorted(name for name in train if train[name] >= 2 and test[name] >= 1)
    if len(classes) < 2:
        counts = ", ".join(f"'{name}' {train[name]} and {test[name]}" for name in sorted(set(names))[:8])
        raise UserError(
            f"too few labelled scans in {where}: two classes need 2 to train and 1 to test on, there are {counts}; "
            "raise `scans`, or change `test_fraction`"
        )
    pairs = zip(chosen.scans, names, strict=True)
    scans = [replace(scan, label=classes.index(name)) for scan, name in pairs if name in classes]
    return replace(_check_enough(scans, where), classes=classes)
