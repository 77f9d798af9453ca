"""A source that is drawn, in the stream: exact resume, pairs of appearances, mixed with a data set."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from streams import digest

from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.pipeline import Augment
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.intensity import IntensityConfig, normalise, statistics
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, Position, SamplingPlan
from scanfoundry.datasets.projection import project
from scanfoundry.datasets.synthetic.config import SyntheticConfig
from scanfoundry.datasets.synthetic.draw import draw_scan

SHAPES = {"name": "shapes", "synthetic": {"scans": 12}}


def config(*sources: dict[str, object], **changes: object) -> DataConfig:
    base = {
        "sources": sources or [SHAPES],
        "crop_2d": (24, 32),
        "crop_3d": (6, 12, 20),
        "batch_2d": 4,
        "batch_3d": 2,
        "workers": 0,
        "ring": 3,
        "positives": "study",
    }
    return DataConfig(**(base | changes))


def whole(batch: Batch) -> str:
    """Its digest, with the label maps."""
    assert batch.labels is not None
    return digest(batch) + hashlib.sha256(batch.labels.numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def reference() -> list[str]:
    with CropLoader(config(), seed=3) as loader:
        return [whole(next(loader)) for _ in range(16)]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(reference: list[str], workers: int) -> None:
    with CropLoader(config(workers=workers), seed=3) as loader:
        assert [whole(next(loader)) for _ in range(16)] == reference
    assert len(set(reference)) == 16


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_from_any_step(reference: list[str], workers: int) -> None:
    with CropLoader(config(), seed=3) as loader:
        states = [(loader.state(), next(loader))[0] for _ in range(16)]
    assert states[-1]["epoch"] > 0  # 12 images of 4 a step and 12 volumes of 2 a step are an epoch
    for step in (1, 10):
        with CropLoader(config(workers=workers), seed=3, position=Position.of(states[step], 3)) as loader:
            assert [whole(next(loader)) for _ in range(16 - step)] == reference[step:]


def test_a_pair_is_two_appearances_of_the_scan_of_its_seed() -> None:
    with CropLoader(config(positives="crops", channels=3), seed=0) as loader:
        kinds = set()
        for _ in range(6):
            batch = next(loader)
            kinds.add(batch.is_2d)
            draws = loader.plan.draws(batch.step)
            assert batch.paired
            assert len(batch) == 2 * len(draws)
            assert (batch.labels.shape, batch.labels.dtype) == ((len(batch), 1, *batch.voxels.shape[2:]), torch.uint8)
            for row, draw in enumerate(draws):
                scan = draw_scan(draw.seed, tuple(batch.voxels.shape[2:]), SyntheticConfig())
                for at, image in zip((row, len(draws) + row), scan.appearances, strict=True):
                    expected = normalise(image, "synthetic", statistics(image), IntensityConfig())
                    assert np.array_equal(batch.voxels[at].numpy(), np.stack([expected] * 3))
                    assert np.array_equal(batch.labels[at, 0].numpy(), scan.labels)
                    assert (batch.modalities[at], batch.sources[at]) == ("synthetic", "shapes")
                assert batch.keys[row] == batch.keys[len(draws) + row]
                assert batch.seeds[row] != batch.seeds[len(draws) + row]
            assert batch.valid.all()
            for half in batch.halves():
                assert torch.equal(half.labels, batch.labels[: len(draws)])
        assert kinds == {True, False}


def test_without_pairs_there_is_one_appearance_and_the_same_scans() -> None:
    with CropLoader(config(positives="views"), seed=0) as loader, CropLoader(config(), seed=0) as pairs:
        for _ in range(4):
            single, first = next(loader), next(pairs).halves()[0]
            assert not single.paired
            assert torch.equal(single.voxels, first.voxels)
            assert torch.equal(single.labels, first.labels)


def test_no_scan_comes_twice_and_an_epoch_has_the_stated_length() -> None:
    plan = SamplingPlan(config(holdout=0.9), 0)
    assert (plan.scans, plan.stored, plan.steps_per_epoch) == (24, 0, 12 // 4 + 12 // 2)
    assert (plan.modalities, plan.patients(), plan.sites) == (["synthetic"], [], {})
    seeds = [draw.seed for step in range(10 * plan.steps_per_epoch) for draw in plan.draws(step)]
    assert len(set(seeds)) == len(seeds) > 200
    assert SamplingPlan(config(crop_2d=None), 0).scans == 12
    assert SamplingPlan(config(crop_3d=None), 0).scans == 12
    again = SamplingPlan(config(), 0).manifest_hash
    other = SamplingPlan(config({"name": "shapes", "synthetic": {"body": 0.1}}), 0).manifest_hash
    assert again == plan.manifest_hash != other


def test_ranks_have_parts_of_one_batch() -> None:
    with CropLoader(config(), seed=5) as one:
        batches = [next(one) for _ in range(3)]
    for rank in range(2):
        with CropLoader(config(), seed=5, rank=rank, world_size=2) as loader:
            for batch in batches:
                part, count = next(loader), len(batch) // 4
                rows = [*range(rank * count, rank * count + count), *range((2 + rank) * count, (3 + rank) * count)]
                assert torch.equal(part.voxels, batch.voxels[rows])
                assert torch.equal(part.labels, batch.labels[rows])


@pytest.mark.parametrize("balance", ["source", "modality"])
@pytest.mark.parametrize("positives", ["views", "crops", "study", "projection"])
def test_drawn_scans_are_mixed_with_read_ones(data_sets: Path, positives: str, balance: str) -> None:
    """By weight; each row is of the source that the plan says, and rows of the data set are as without the other."""
    read = {"name": "mr", "path": data_sets / "mr", "flip_axes": [0, 2]}
    settings = config(
        read, {"name": "shapes", "synthetic": {"scans": 24}, "weight": 3},
        crop_2d=None, batch_3d=8, positives=positives, balance=balance, holdout=0.2,
    )  # fmt: skip
    alone = SamplingPlan(config(read, crop_2d=None, holdout=0.2, positives="crops"), 0)
    sources: list[str] = []
    with CropLoader(settings, seed=1) as loader:
        for _ in range(16):
            batch = next(loader)
            assert batch.labels is None
            assert batch.voxels.isfinite().all()
            sources += batch.sources[:8]
            for row, (source, modality) in enumerate(zip(batch.sources, batch.modalities, strict=True)):
                assert modality == {"mr": "mr", "shapes": "synthetic"}[source]
                assert abs(batch.voxels[row].mean()) < 3
        assert loader.patients() == alone.patients() != []
        assert set(loader.sites) == {"mr"}
        assert set(loader.manifest_hash) == {"mr", "shapes"}
        shards = {source for step in range(20) for source, _ in loader.plan.shards_of(step)}
    assert shards == {0}
    share = sources.count("shapes") / len(sources)
    assert share == pytest.approx(24 * 3 / (24 * 3 + alone.scans), abs=0.04)


def test_rows_of_a_mixture_are_those_of_the_seeds(data_sets: Path) -> None:
    settings = config({"name": "mr", "path": data_sets / "mr"}, SHAPES, crop_2d=None, batch_3d=8)
    with CropLoader(settings, seed=1) as loader:
        batch = next(loader)
        for row, draw in enumerate(loader.plan.draws(0)):
            if draw.source == 1:
                image = draw_scan(draw.seed, (6, 12, 20), SyntheticConfig()).appearances[1]
                expected = normalise(image, "synthetic", statistics(image), IntensityConfig())
                assert np.array_equal(batch.voxels[8 + row, 0].numpy(), expected)
        assert {"mr", "shapes"} == set(batch.sources)


def test_label_maps_are_handed_on_where_nothing_is_moved() -> None:
    with CropLoader(config(crop_2d=None), seed=0) as loader:
        first = next(loader).halves()[0]
    greys = Augment(AugmentConfig(default={"noise": {"sigma": [0.1, 0.2]}, "gamma": {}}))(first)
    assert torch.equal(greys.labels, first.labels)
    assert not torch.equal(greys.voxels, first.voxels)
    for moving in ({"default": {"affine": {}}}, {"default": {"flip": {"axes": [2]}}}, {"size_3d": (6, 12, 8)}):
        views = [Augment(AugmentConfig(**moving))(first, view) for view in range(6)]
        assert any(view.labels is None for view in views)
        assert all(view.labels is None or torch.equal(view.voxels, first.voxels) for view in views)
    assert project(first).labels is None
    assert first.to("cpu").labels is not None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"name": "a"}, "set its `path`, or its `synthetic`"),
        ({"name": "a", "path": "p", "synthetic": {}}, "set its `path`, or its `synthetic`"),
        ({"name": "a", "synthetic": {}, "flip_axes": [1]}, "flip_axes, exclude and near_duplicates are for data sets"),
        ({"name": "a", "synthetic": {}, "exclude": "*"}, "are for data sets"),
        ({"name": "a", "synthetic": {}, "near_duplicates": "drop"}, "are for data sets"),
        ({"name": "a", "synthetic": {"shapes": [4, 2]}}, "a range is"),
    ],
)
def test_sources_that_are_neither_or_both_are_refused(source: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(source)
