"""The sampling plan: which crop every sample of every optimiser step is, as a pure function of (seed, epoch, position).

No state is kept: any step can be asked for at any time, on any rank, and gives the same answer. That is what makes
resume exact after any kill, the global stream independent of world size and of worker count, and the reissue of a
dead worker's task trivial.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import PositiveSize3D, Size3D
from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.crop import mix
from scanfoundry.datasets.identity import fraction
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.datasets.modality import meant
from scanfoundry.datasets.sampling.columns import Columns, read_columns
from scanfoundry.datasets.sampling.excluded import Excluded, require
from scanfoundry.datasets.sampling.left_out import near_duplicates_of
from scanfoundry.datasets.sampling.mixture import Mixture
from scanfoundry.datasets.sampling.pairs import StudyPartners
from scanfoundry.datasets.sampling.segments import Segment
from scanfoundry.datasets.sampling.shuffle import WindowShuffle
from scanfoundry.datasets.sampling.stream import Rest, Stream
from scanfoundry.datasets.shards.hashes import Hashes
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.storage.store import CacheConfig
from scanfoundry.datasets.synthetic.config import SyntheticConfig
from scanfoundry.datasets.synthetic.source import SyntheticSource

_STEPS, _VISITS = 64, 256  # block lengths of the mixtures of kinds and of sources
PROJECTED = "xr"  # modality of a volume's projection

Share = Annotated[float, Field(ge=0, le=1)]


def _text(value: object) -> object:
    return None if value is None else str(value)


class SourceConfig(Config):
    """One source in the mixture: a data set (`path`), or scans that are drawn (`synthetic`).

    A data set is a folder that `scanfoundry data build` made, or the URL of one.
    """

    name: str
    path: Annotated[str | None, BeforeValidator(_text)] = None
    synthetic: SyntheticConfig | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    flip_axes: list[Annotated[int, Field(ge=0, le=2)]] = []  # 0 = D, 1 = H, 2 = W; only where anatomy allows
    near_duplicates: Literal["keep", "drop"] = "keep"  # drop: one scan of each group is sampled, see data build
    exclude: Excluded | None = None  # of the masks: voxels that are padding to every loss; see excluded.values_of

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        if (self.path is None) == (self.synthetic is None):
            raise ValueError(
                f"source '{self.name}' is either a data set or drawn: set its `path`, or its `synthetic` ({{}})"
            )
        if self.synthetic is not None and (self.flip_axes or self.exclude or self.near_duplicates == "drop"):
            raise ValueError(
                f"source '{self.name}' is drawn: flip_axes, exclude and near_duplicates are for data sets; remove them"
            )
        return self


class DataConfig(Config):
    """What pre-training reads. A source's share of the crops is proportional to weight * scans**temperature.

    temperature 1: every scan is as likely as any other; 0: every source is, or with balance 'modality' every modality
    (its share is (sum over sources of weight * scans)**temperature). batch_2d and batch_3d are global sizes: they do
    not change with the number of ranks. Images and frames of videos serve crop_2d; volumes serve crop_3d or, where
    that is not set, give slices to crop_2d.

    positives: what objectives that compare two views compare. 'views': two augmentations of one crop. 'crops': two
    crops of one scan, which share at least min_overlap of their voxels (0: they lie anywhere). 'study': crops of two
    scans of one study, at the same place where these have the same grid; a scan that is alone in its study pairs with
    itself, as 'crops' does. 'projection': a volume and its projection. batch_2d and batch_3d count pairs. Of a
    synthetic source, 'crops' and 'study' are two appearances of one label map, voxel by voxel.
    """

    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    temperature: Share = 1.0
    balance: Literal["source", "modality"] = "source"
    positives: Literal["views", "crops", "study", "projection"] = "views"
    min_overlap: Share = 0.5
    crop_2d: tuple[PositiveInt, PositiveInt] | None = None  # H, W
    crop_3d: PositiveSize3D | None = None  # D, H, W
    batch_2d: PositiveInt = 32
    batch_3d: PositiveInt = 4
    channels: Annotated[int, Field(ge=1, le=3)] = 1
    crops_per_visit: PositiveInt = 1  # consecutive crops of one scan: cheaper reads, less variety in a batch
    foreground: Share = 0.9  # share of crops that are centred on foreground; the others lie anywhere
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of patients that is never sampled
    workers: Annotated[int, Field(ge=0)] = 2
    ring: Annotated[int, Field(ge=2)] = 4  # batches in shared memory; it grows up to four times this
    timeout_s: Annotated[float, Field(gt=0)] = 600.0  # without any batch from the workers ends the run
    bad_sample_ceiling: Share = 0.01  # share of scans that may prove damaged before the run stops
    intensity: IntensityConfig = IntensityConfig()
    window: PositiveInt = 16  # shards that are shuffled together, and so held open at a time
    augment: AugmentConfig = AugmentConfig()  # of every batch that is trained on
    cache: CacheConfig = CacheConfig()  # of shards behind a URL
    steps_per_epoch: PositiveInt | None = None  # default: as many as visit each scan once
    allow_grown: bool = False  # a run goes on where scans were appended to its sources, and draws from these as well

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("two sources have the same name")
        if self.crop_2d is None and self.crop_3d is None:
            raise ValueError("set crop_2d, crop_3d or both")
        if self.channels == 2:
            raise ValueError("channels is 1 (grey) or 3 (RGB)")
        if self.positives == "projection" and self.crop_3d is None:
            raise ValueError("positives 'projection' are of volumes: set crop_3d")
        return self


@dataclass(frozen=True)
class Position:
    """A position in the stream: `position` whole optimiser steps of `epoch` are done."""

    epoch: int = 0
    position: int = 0

    @classmethod
    def of(cls, state: dict[str, int], seed: int) -> "Position":
        """The position in a `CropLoader.state()`.

        Raises:
            UserError: the state belongs to a run of another seed.
        """
        if state["seed"] != seed:
            raise UserError(f"the checkpoint's data stream has seed {state['seed']}, the config {seed}; set that seed")
        return cls(state["epoch"], state["position"])


class Draw(NamedTuple):
    """One crop: of which scan, and the seed that decides on place, flips and later augmentation."""

    stream: int
    row: int
    source: int
    shard: int  # number in the source's manifest
    sample: int  # number in the shard's index
    seed: int


@dataclass(frozen=True)
class StepKind:
    """The steps of one segment whose crops have one shape. crops, visits: of earlier segments, whose count goes on."""

    crop: Size3D
    batch: int  # of all ranks together
    streams: list[int]
    mixture: Mixture
    crops: int
    visits: int


class _Progress(NamedTuple):
    """How far a segment is: crops by their shape, and visits by the number of the stream."""

    crops: dict[Size3D, int]
    visits: dict[int, int]


class _SourceRows(NamedTuple):
    """Scans of one source that serve crops of one shape. The scans of one group share its mass."""

    source: int
    crop: Size3D
    group: str
    table: Columns


class SamplingPlan:
    """Which crop every sample of every optimiser step of a run is.

    Where sources grow, the plan is one of segments. Each has its own mixtures from its first step on, and its streams
    end their passes before new scans join (`Stream`). Steps of earlier segments stay what they were.

    Args:
        config: sources, mixture and crop shapes.
        seed: of the run.
        segments: of the run, the last one of the sources as they are; none: of a run that begins.
        data: the sources, opened.

    Attributes:
        before: the plan of the segments before the last one.
        streams: of all segments, by their numbers.
        kinds: of steps of the last segment, by crop shape.
        schedule: of these kinds.

    Raises:
        UserError: a source cannot be opened, or has no scan that serves the configured crops.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        segments: Sequence[Segment] = (),
        data: Sequence[DataSet | SyntheticSource] | None = None,
    ) -> None:
        self.config, self.seed = config, seed
        self.data = list(data or open_sources(config))
        named = {source.name: data for source, data in zip(config.sources, self.data, strict=True)}
        self.manifest_hash = {name: data.manifest_hash for name, data in named.items()}
        self.segments = list(segments) or [Segment(0, self.manifest_hash)]
        self.before = self._plan_before()
        stored = {name: data for name, data in named.items() if isinstance(data, DataSet)}
        self.sites = {name: str(data.manifest.parameters.get("site", "")) for name, data in stored.items()}
        self.modalities = sorted({modality for data in self.data for modality in data.modalities})
        self.labelled = not stored  # every crop comes with its label map
        self._check_modalities(config.augment.modalities)
        for source in config.sources:
            if source.exclude is not None:
                require(stored[source.name], source.name, source.exclude)
        self.unused: dict[str, int] = {}  # scans by source that no crop size fits: images without crop_2d
        self.volumes = 0  # among the scans, whole or as slices
        self.messages: list[str] = []  # on what is left out, for people
        self._patients: list[NDArray[np.void]] = []  # of all sources, some of them more than once
        self._more_patients: set[str] = set()
        self.streams: list[Stream] = [] if self.before is None else list(self.before.streams)  # of all segments
        self._first = len(self.streams)
        self._done = _Progress({}, {}) if self.before is None else self.before._progress(self.begins)
        kinds: dict[Size3D, list[int]] = {}
        for stream in self._all_streams():
            kinds.setdefault(stream.crop, []).append(stream.number)
            self.streams.append(stream)
        self.hashes = Hashes(self._patients, self._more_patients)  # of all patients that may be sampled
        self._patients.clear()
        self._remember()
        self.scans = sum(stream.visits.rows for stream in self.current)
        self.stored = sum(s.visits.rows for s in self.current if isinstance(self.data[s.source], DataSet))
        self.kinds = [self._kind(crop, kinds[crop]) for crop in sorted(kinds)]
        self.alone: dict[str, int] = {}  # with positives 'study': scans by source that pair with themselves
        self._partners = self._studies() if config.positives == "study" else {}  # by stream
        mass = [sum(self.streams[s].share for s in kind.streams) / kind.batch for kind in self.kinds]
        self.schedule = Mixture(mass, _STEPS, self._mixed(1))
        crops = self.scans * config.crops_per_visit / sum(stream.share for stream in self.current)
        self.steps_per_epoch = config.steps_per_epoch or max(1, round(crops * sum(mass)))
        if self.before is not None:
            self.steps_per_epoch = self.before.steps_per_epoch  # the unit that positions of the run are counted in

    @property
    def begins(self) -> int:
        """The first step of the last segment."""
        return self.segments[-1].step

    def _mixed(self, *numbers: int) -> int:
        """A seed of this segment."""
        return mix(self.seed, *numbers, *([] if self.before is None else [self.begins]))

    def _plan_before(self) -> "SamplingPlan | None":
        *earlier, last = self.segments
        assert last.manifests == self.manifest_hash, "the last segment is of the sources as they are"
        if not earlier:
            return None
        manifests = earlier[-1].manifests
        named = zip(self.config.sources, self.data, strict=True)
        data = [each.as_of(manifests[s.name]) if isinstance(each, DataSet) else each for s, each in named]
        return SamplingPlan(self.config, self.seed, earlier, data)

    @property
    def first(self) -> "SamplingPlan":
        """The plan of the run's first segment: what it draws first, however its sources have grown."""
        return self if self.before is None else self.before.first

    @property
    def current(self) -> list[Stream]:
        """The streams of the last segment."""
        return self.streams[self._first :]

    def _remember(self) -> None:
        """Add the patients of segments before who are sampled no more. All plans then share one list: it is large."""
        plan = self.before
        if plan is not None and len(gone := plan.hashes.missing_in(self.hashes)):
            self.hashes = Hashes([self.hashes.halves(), gone])
        while plan is not None:
            plan.hashes, plan = self.hashes, plan.before

    def _progress(self, step: int) -> _Progress:
        """What the run has drawn before a step of the last segment."""
        found = _Progress({}, {})
        for kind, steps in zip(self.kinds, self.schedule.drawn(step - self.begins), strict=True):
            found.crops[kind.crop] = kind.crops + steps * kind.batch
            visits = self._visits(found.crops[kind.crop]) - kind.visits
            found.visits.update(zip(kind.streams, kind.mixture.drawn(visits), strict=True))
        return found

    def _visits(self, crops: int) -> int:
        """The visits that so many crops of one kind have begun."""
        return -(-crops // self.config.crops_per_visit)

    def _check_modalities(self, modalities: Iterable[str]) -> None:
        """UserError where augmentation is set for a modality that no source has: a slip would go unnoticed."""
        known = list(self.modalities)
        if self.config.positives == "projection":
            known.append(PROJECTED)
        for name in modalities:
            if name not in known:
                code = meant(name) or name
                hint = f"did you mean '{code}'?" if code in known and code != name else f"there are {', '.join(known)}"
                raise UserError(f"data.augment.modalities: no source has '{name}'; {hint}")

    def _kind(self, crop: Size3D, streams: list[int]) -> StepKind:
        batch = self.config.batch_2d if crop[0] == 1 else self.config.batch_3d
        mixture = Mixture([self.streams[s].share for s in streams], _VISITS, self._mixed(2, *crop))
        crops = self._done.crops.get(crop, 0)
        return StepKind(crop, batch, streams, mixture, crops, self._visits(crops))

    def _all_streams(self) -> list[Stream]:
        """The streams of the last segment; a stream's share is its group's mass, in proportion to its scans."""
        found: list[_SourceRows] = []
        for number in range(len(self.data)):
            found += self._rows_of(number)
        streams: list[Stream] = []
        for rows in found:
            group = [each for each in found if each.group == rows.group]
            weights = [self.config.sources[each.source].weight * len(each.table) for each in group]
            weight = self.config.sources[rows.source].weight * len(rows.table)
            if self.config.balance == "modality":
                share = weight * sum(weights) ** (self.config.temperature - 1)
            else:
                share = weight * sum(len(each.table) for each in group) ** (self.config.temperature - 1)
            streams.append(self._stream(self._first + len(streams), rows, share))
        return streams

    def _rows_of(self, number: int) -> list["_SourceRows"]:
        """A source's scans by crop shape (volumes, images) and, where these are balanced, by modality."""
        config, source, data = self.config, self.config.sources[number], self.data[number]
        stored, studies = isinstance(data, DataSet), config.positives == "study"
        rows = sum(shard.samples for shard in data.manifest.shards) if isinstance(data, DataSet) else None
        table = read_columns(data.sample_blocks(), rows, config.holdout, stored, studies)
        if isinstance(data, DataSet) and studies and not len(table.study):
            where = data.store.shown("")
            raise UserError(
                f"data.positives 'study': {where} was built before studies were kept; build it into a new folder"
            )
        patients = table.patient
        table = table.rows(self._sampled(number, table))
        crop_2d = None if config.crop_2d is None else (1, *config.crop_2d)
        flat = table.flat | (config.crop_3d is None)
        self.unused[source.name] = 0 if crop_2d is not None else int(flat.sum())
        found = []
        for crop, serves in ((crop_2d, flat), (config.crop_3d, ~flat)):
            if crop is None or not serves.any():
                continue
            chosen = table.rows(serves)
            self.volumes += int((~chosen.flat).sum())
            self._patients.append(chosen.patient)
            if config.balance == "source":
                found.append(_SourceRows(number, crop, source.name, chosen))
                continue
            for each in np.flatnonzero(np.bincount(chosen.modality)):
                part = chosen.rows(chosen.modality == each)
                found.append(_SourceRows(number, crop, data.modalities[each], part))
        if isinstance(data, SyntheticSource):
            return found
        if not found:
            reason = "set data.crop_2d" if self.unused[source.name] else "data.holdout leaves no patient"
            if not self.unused[source.name] and source.near_duplicates == "drop":
                reason = "all are held out, or resemble a scan that is (near_duplicates); lower data.holdout"
            raise UserError(f"source '{source.name}' ({data.store.shown('')}) has no scan to sample: {reason}")
        self._more_patients.update(patient for patient in data.manifest.also if fraction(patient) >= config.holdout)
        self._more_patients.update(self._seen_later(data, patients))
        return found

    def _seen_later(self, data: DataSet, patients: NDArray[np.void]) -> set[str]:
        """Patients under whom scans that a segment before has sampled were found again: held out or not, they are seen.

        Args:
            data: of the source.
            patients: of all its rows.
        """
        if self.before is None:
            return set()
        later, seen = data.manifest.later, self.before.hashes
        return {each for row, found in later.items() if patients[row].tobytes().hex() in seen for each in found}

    def _sampled(self, number: int, table: Columns) -> NDArray[np.bool_]:
        """(rows,) which scans of a source are neither held out nor near-duplicates that it leaves out."""
        source, data = self.config.sources[number], self.data[number]
        held_out = table.held_out
        if source.near_duplicates == "keep" or isinstance(data, SyntheticSource):
            return ~held_out
        left = near_duplicates_of(data, source.name, held_out)
        # Nobody is tested on whose scan is as good as seen: a fine-tuning refuses these patients as well.
        self._patients.append(table.patient[left.repeats])
        of_held_out = f", {left.leaks.sum()} that resemble scans of held-out patients" if left.leaks.any() else ""
        self.messages.append(
            f"source '{source.name}': left out {left.repeats.sum()} near-duplicates{of_held_out}; "
            f"{len(table) - (left.rows | held_out).sum()} of {len(table)} scans are sampled"
        )
        return ~(held_out | left.rows)

    def _stream(self, number: int, rows: "_SourceRows", share: float) -> Stream:
        name = mix(*rows.group.encode()) if self.config.balance == "modality" else 0
        table, seed = rows.table, self._mixed(3, rows.source, *rows.crop, name)
        visits = WindowShuffle(_run_lengths(table.shard), self.config.window, seed)
        place = number, rows.source, rows.crop, rows.group
        return Stream(*place, table.shard, table.sample, share, visits, table.study, self._rest(rows))

    def _rest(self, rows: "_SourceRows") -> Rest | None:
        """What is left of the pass that the stream of the same key is in as the last segment begins."""
        found = None
        for number, stream in enumerate(self.streams[: self._first]):
            if stream.key == (rows.source, rows.crop, rows.group):
                self.streams[number] = found = stream.within(rows.table.shard, rows.table.sample)
                if self.before is not None and not found.gone:
                    self.before.streams[number] = found  # the same scans, in the memory of the new ones
                if len(found.gone) == found.visits.rows:
                    name = self.config.sources[rows.source].name
                    raise UserError(f"source '{name}': no scan of before is sampled any more; choose a new run_dir")
        return found.ending(self._done.visits[found.number]) if found and found.number in self._done.visits else None

    def _studies(self) -> dict[int, StudyPartners]:
        found = {} if self.before is None else dict(self.before._partners)
        every: list[StudyPartners] = []
        self.alone = dict.fromkeys((source.name for source in self.config.sources), 0)
        for kind in self.kinds:
            for source in sorted({self.streams[stream].source for stream in kind.streams}):
                if isinstance(self.data[source], SyntheticSource):
                    continue
                streams = {s: self.streams[s].studies for s in kind.streams if self.streams[s].source == source}
                every.append(StudyPartners(streams))
                found |= dict.fromkeys(streams, every[-1])
                self.alone[self.config.sources[source].name] += every[-1].alone
        if self.stored == self.scans and all(each.alone == each.scans for each in every):
            raise UserError(
                f"data.positives 'study': none of {self.stored} scans has another one of its study to pair with; "
                f"take 'crops', or build the scans of a study into one data set"
            )
        return found

    def patients(self) -> list[str]:
        """Sorted hashes of all patients that may be sampled."""
        return list(self.hashes)

    def kind(self, step: int) -> StepKind:
        """The kind of step number `step` since the start of the run, the same on all ranks."""
        if self.before is not None and step < self.begins:
            return self.before.kind(step)
        return self.kinds[self.schedule.locate(step - self.begins)[0]]

    def draws(self, step: int, share: int = 0, shares: int = 1) -> list[Draw]:
        """The crops of one step, in order.

        Args:
            step: since the start of the run.
            share: which part of the global batch. Parts are consecutive: the crops of one visit stay on one rank.
            shares: how many parts the global batch is cut into.
        """
        if self.before is not None and step < self.begins:
            return self.before.draws(step, share, shares)
        number, earlier = self.schedule.locate(step - self.begins)
        kind = self.kinds[number]
        size = kind.batch // shares
        first = kind.crops + earlier * kind.batch + share * size
        return [self._draw(number, first + sample) for sample in range(size)]

    def _draw(self, number: int, crop: int) -> Draw:
        kind, visit = self.kinds[number], crop // self.config.crops_per_visit
        if visit < kind.visits:  # a visit that the segment before has begun
            return self._begun(kind.crop, crop)
        part, rank = kind.mixture.locate(visit - kind.visits)
        stream, row = self.streams[kind.streams[part]].visit(rank)
        return self._draw_at(stream, row, self._mixed(4, number, crop))

    def _begun(self, shape: Size3D, crop: int) -> Draw:
        """The crop with a number of before, of a scan that is still sampled."""
        assert self.before is not None
        number = next(number for number, kind in enumerate(self.before.kinds) if kind.crop == shape)
        draw = self.before._draw(number, crop)
        return self._draw_at(draw.stream, draw.row, draw.seed)

    @property
    def paired(self) -> bool:
        """Whether every crop has a partner."""
        return self.config.positives in ("crops", "study")

    def partner(self, draw: Draw, bad: Container[tuple[int, int]] = ()) -> Draw:
        """The crop that a crop is paired with.

        Args:
            draw: the crop.
            bad: scans as (stream, row). A partner is of none of them unless `draw` itself is.
        """
        stream, row = draw.stream, draw.row
        if stream in self._partners:
            stream, row = self._partners[stream].of(stream, row, draw.seed, bad)
        return self._draw_at(stream, row, mix(draw.seed, 2))

    def _draw_at(self, number: int, row: int, seed: int) -> Draw:
        stream = self.streams[number]
        row = stream.sampled(row)
        return Draw(number, row, stream.source, int(stream.shards[row]), int(stream.samples[row]), seed)

    def scan(self, number: int, row: int) -> tuple[int, int, int]:
        """The source, shard and sample of a row of a stream."""
        draw = self._draw_at(number, row, 0)
        return draw.source, draw.shard, draw.sample

    def shards_of(self, step: int) -> list[tuple[int, int]]:
        """The shards that the global batch of a step reads, as (source, shard), each once and in order."""
        draws = self.draws(step)
        if self._partners:
            draws += [self.partner(draw) for draw in draws]
        read = (draw for draw in draws if isinstance(self.data[draw.source], DataSet))
        return list(dict.fromkeys((draw.source, draw.shard) for draw in read))

    def replacement(self, draw: Draw) -> Draw:
        """The crop in place of one whose scan cannot be read: the same crop of the next scan of its source."""
        return self._draw_at(draw.stream, (draw.row + 1) % self.streams[draw.stream].visits.rows, draw.seed)


def _run_lengths(shards: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The rows of each shard that has any; the rows of a shard follow each other."""
    ends = np.flatnonzero(np.diff(shards)) + 1
    return np.diff(np.concatenate([[0], ends, [len(shards)]]))


def open_sources(config: DataConfig) -> list[DataSet | SyntheticSource]:
    """The sources, as they are now. UserError where one cannot be opened."""
    return [_opened(source, config) for source in config.sources]


def _opened(source: SourceConfig, config: DataConfig) -> DataSet | SyntheticSource:
    if source.synthetic is not None:
        return SyntheticSource(source.synthetic, config.crop_2d is not None, config.crop_3d is not None)
    assert source.path is not None, "SourceConfig has one of the two"
    return DataSet(source.path, config.cache)
