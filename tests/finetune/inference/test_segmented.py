"""Whole segmentations: what labels, probabilities and maps are made of, and the memory that making them takes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from scipy.stats import entropy as scipy_entropy

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.volumes import resize
from scanfoundry.finetune.inference.segmented import SegmentationRequest, segment_volume
from scanfoundry.finetune.inference.uncertainty import disagreement, entropy
from scanfoundry.finetune.inference.windows import Tiling

CPU = torch.device("cpu")


def network(seed, classes=4):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv3d(8, classes, 1))


def whole(model, image, shape, patch, mirrors):
    """Logits at the grid `shape` as they were computed before: all of the volume at every step."""
    total = sum(
        sliding_window_inference(image[None].flip([a + 2 for a in m]), patch, 1, model, 0.5, mode="gaussian").flip(
            [a + 2 for a in m]
        )
        for m in mirrors
    )
    return resize((total[0] / len(mirrors)).numpy(), shape)


@settings(max_examples=15, deadline=None)
@given(
    tiles=st.tuples(*[st.integers(2, 5)] * 3),
    shape=st.tuples(*[st.integers(5, 30)] * 3),
    members=st.integers(1, 3),
    mirrors=st.sampled_from([[()], [(), (0,), (2,), (0, 2)]]),
)
@torch.inference_mode()
def test_equals_the_whole_volume_computation(tiles, shape, members, mirrors):
    patch = (6, 4, 8)
    image = torch.randn(1, *(n * p // 2 for n, p in zip(tiles, patch, strict=True)))
    models = [network(seed) for seed in range(members)]
    found = segment_volume(
        models, image, 0.0, shape, Tiling(patch, 0.5, mirrors), CPU, 1.0, SegmentationRequest(True, True)
    )
    logits = [torch.from_numpy(whole(model, image, shape, patch, mirrors)) for model in models]
    each = torch.stack([one.softmax(0) for one in logits]).double()
    mean = each.mean(0).numpy()
    sure = np.sort(mean, 0)[-1] - np.sort(mean, 0)[-2] > 1e-4  # a tie may fall either way
    assert np.array_equal(found.labels[sure], mean.argmax(0)[sure])
    assert np.allclose(found.probabilities, mean, atol=2e-3)
    spots = np.random.default_rng(0).integers(0, shape, (50, 3))
    alone = segment_volume(
        models, image, 0.0, shape, Tiling(patch, 0.5, mirrors), CPU, 1.0, SegmentationRequest(spots=spots)
    )
    assert alone.probabilities is None
    assert np.allclose(alone.at_spots, mean[:, *spots.T].T, atol=1e-5)
    assert np.array_equal(alone.labels, found.labels)
    assert np.allclose(found.maps["uncertainty"], scipy_entropy(mean, axis=0) / np.log(4), atol=2e-3)
    if members > 1:
        mutual = scipy_entropy(mean, axis=0) - np.mean([scipy_entropy(one.numpy(), axis=0) for one in each], 0)
        assert np.allclose(found.maps["disagreement"], mutual / np.log(4), atol=2e-3)
    else:
        assert set(found.maps) == {"uncertainty"}


def test_two_runs_give_the_same_bytes_and_asking_for_more_changes_no_label(tmp_path):
    image, models = torch.randn(1, 20, 17, 31), [network(0)]
    tiling = Tiling((8, 8, 8), 0.5, [(), (1,)])
    plain = segment_volume(models, image, 0.0, (33, 20, 40), tiling, CPU)
    runs = [
        segment_volume(models, image, 0.0, (33, 20, 40), tiling, CPU, 1.0, SegmentationRequest(True, True, store=store))
        for store in (None, tmp_path)
    ]
    assert plain.probabilities is None
    assert plain.maps == {}
    assert all(run.labels.tobytes() == plain.labels.tobytes() for run in runs)
    assert runs[0].probabilities.tobytes() == runs[1].probabilities.tobytes()
    assert runs[0].maps["uncertainty"].tobytes() == runs[1].maps["uncertainty"].tobytes()
    assert runs[0].probabilities.dtype == np.float16


def test_temperature_softens_probabilities_and_keeps_labels():
    image, models, tiling = torch.randn(1, 12, 12, 12), [network(0)], Tiling((8, 8, 8), 0.5)
    sharp, soft = (
        segment_volume(models, image, 0.0, (12, 12, 12), tiling, CPU, t, SegmentationRequest(True, True))
        for t in (1.0, 4.0)
    )
    assert np.array_equal(sharp.labels, soft.labels)
    assert (soft.maps["uncertainty"] >= sharp.maps["uncertainty"]).mean() > 0.99


def test_the_ends_of_both_scales():
    same = torch.full((2, 4, 3), 0.25)
    assert torch.allclose(entropy(same[0], 0), torch.ones(3))
    assert torch.allclose(disagreement(same), torch.zeros(3), atol=1e-6)
    torn = torch.eye(2)[:, :, None]  # each member sure of another of two classes
    assert torch.equal(entropy(torn[0], 0), torch.zeros(1))
    assert torch.allclose(disagreement(torn), torch.ones(1))


def test_a_network_that_gives_nan_is_refused():
    model = network(0)
    model[0].weight.data[0] = float("nan")
    with pytest.raises(UserError, match="no numbers"):
        segment_volume([model], torch.randn(1, 9, 9, 9), 0.0, (9, 9, 9), Tiling((8, 8, 8), 0.5), CPU)


MEASURED = """
import json, torch
from scanfoundry.pretrain.memory.measured import Resident
from scanfoundry.finetune.inference.windows import Tiling
from scanfoundry.finetune.inference.segmented import segment_volume
torch.set_num_threads(1)
model = torch.nn.Conv3d(1, 24, 1)
def run(length):
    image = torch.randn(1, length, 32, 32)
    with Resident() as memory:
        memory.begin()
        made = segment_volume([model], image, 0.0, (length * 5 // 4, 40, 40), Tiling((16, 32, 32), 0.5), image.device)
    return [memory.peak - made.labels.nbytes, made.labels.size * 24 * 4]
run(40)  # libraries are loaded
print(json.dumps([run(160), run(640)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_length():
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURED]
    made = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    (short, _), (long, scores) = json.loads(made.stdout)
    assert long < 1.05 * short
    assert long < 0.3 * scores  # what the scores of the whole volume take
