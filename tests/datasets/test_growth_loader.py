"""The loader on a source that has grown: the same batches with any workers, from any later position, and bad scans."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streams import stream

from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, Position, SamplingPlan
from scanfoundry.datasets.sampling.segments import Segment
from scanfoundry.datasets.shards.build import BuildOptions, append, build
from scanfoundry.datasets.shards.reader import DataSet

BEGINS, STEPS, SEED = 3, 14, 5


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Segment]]:
    """10 images, then 6 more; a damaged one is visited as the pass over the first ones ends."""
    root = tmp_path_factory.mktemp("grown")
    rng, options = np.random.default_rng(0), BuildOptions(shard_mb=0.004, workers=1, modality="xr")
    for folder, count in (("old", 10), ("new", 6)):
        (root / folder).mkdir()
        for number in range(count):
            Image.fromarray(rng.integers(0, 200, (30, 40), np.uint8)).save(root / folder / f"{folder}{number}.png")
    build([root / "old"], root / "shards", options)
    began = DataSet(root / "shards")
    append([root / "new"], root / "shards", options)
    now = DataSet(root / "shards")
    segments = [Segment(0, {"a": began.manifest_hash}), Segment(BEGINS, {"a": now.manifest_hash})]
    plan = SamplingPlan(settings(root / "shards"), SEED, segments)
    draw = [draw for step in range(BEGINS, STEPS) for draw in plan.draws(step) if draw.stream == 0][-1]
    shard = now.manifest.shards[draw.shard]
    entry = now.index(shard).samples[draw.sample]
    content = bytearray((root / "shards" / shard.name).read_bytes())
    content[entry.offset + entry.length // 2] ^= 255
    (root / "shards" / shard.name).write_bytes(content)
    return root / "shards", segments


def settings(folder: Path, workers: int = 0) -> DataConfig:
    return DataConfig.model_validate(
        {
            "sources": [{"name": "a", "path": folder}], "crop_2d": (8, 8), "batch_2d": 4, "workers": workers,
            "window": 2, "crops_per_visit": 3, "bad_sample_ceiling": 0.1, "positives": "crops",
        }
    )  # fmt: skip


def loader(folder: Path, segments: list[Segment], position: Position, workers: int = 0, *ranks: int) -> CropLoader:
    config = settings(folder, workers)
    return CropLoader(config, SEED, *ranks, position=position, plan=SamplingPlan(config, SEED, segments))


def test_batches_after_growth_are_the_same_from_any_position(grown: tuple[Path, list[Segment]]) -> None:
    folder, segments = grown
    states, straight = [], []
    with loader(folder, segments, Position(0, BEGINS), workers=2) as batches:
        for _ in range(STEPS):
            states.append(Position.of(batches.state(), SEED))
            straight += stream(batches, 1)
        assert batches.stats()["bad_samples"] == 1  # though it is in the streams of both segments
        assert {stream for stream, _ in batches._bad} == {0, 1}
    for done in (1, 5, 12):
        with loader(folder, segments, states[done]) as batches:
            assert stream(batches, STEPS - done) == straight[done:]
    # Two ranks have the halves of each batch, and a second half of partners.
    whole = []
    with loader(folder, segments, Position(0, BEGINS)) as one:
        whole = [next(one) for _ in range(4)]
        keys = [(batch.keys[:4], batch.seeds.tolist()[:4]) for batch in whole]
    parts = []
    for rank in range(2):
        with loader(folder, segments, Position(0, BEGINS), 0, rank, 2) as half:
            parts.append([next(half) for _ in range(4)])
            parts[-1] = [(batch.keys[:2], batch.seeds.tolist()[:2]) for batch in parts[-1]]
    assert [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*parts, strict=True)] == keys


def test_before_the_growth_batches_are_those_of_the_data_set_of_before(
    grown: tuple[Path, list[Segment]], tmp_path: Path
) -> None:
    """A source grown in a new folder, too: the old one needs no other bytes."""
    folder, segments = grown
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    (old / "manifest-000000.json").replace(old / "manifest.json")
    with loader(old, segments[:1], Position()) as before, loader(folder, segments, Position()) as after:
        assert stream(before, BEGINS) == stream(after, BEGINS)
        assert stream(before, 1) != stream(after, 1)
