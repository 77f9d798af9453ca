"""What goes with every export does to a scan what scanfoundry does, and knows nothing of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.cases.volumes import resize as plain_resize
from scanfoundry.finetune.export import bundle_runner, onnx_runner, standalone
from scanfoundry.finetune.export.inlining import source_without_scanfoundry
from scanfoundry.finetune.export.standalone import padded, prepare, probabilities, resize, whole_logits
from scanfoundry.finetune.sample import centred

CPU = torch.device("cpu")
sizes = st.integers(3, 14)
steps = st.floats(0.4, 2.5)


def scan_of(rng, shape, spacing, channels=1):
    return Scan((100 + 40 * rng.normal(size=(channels, *shape))).astype(np.float32), spacing, None, "")


@pytest.fixture(scope="module")
def written():
    """The script as it is written into exports, run by itself."""
    names = {"__name__": "preprocessing"}
    exec(source_without_scanfoundry(standalone), names)
    return names


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 99), st.tuples(sizes, sizes, sizes), st.tuples(steps, steps, steps), st.sampled_from(["mr", "ct"])
)
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_a_scan_is_prepared_as_by_scanfoundry(described, written, task, seed, shape, spacing, modality):
    adapter, _, about = described(task, modality=modality)
    scan = scan_of(np.random.default_rng(seed), shape, spacing)
    sample = adapter.unlabelled(scan)
    for function in (prepare, written["prepare"]):
        image, fill = function([scan.voxels], spacing, about)
        assert image.dtype == np.float32
        assert fill == sample.fill
        np.testing.assert_allclose(image, sample.image.numpy(), atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes))
def test_resizing_is_that_of_scanfoundry(seed, shape, target):
    array = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    np.testing.assert_allclose(resize(array, target), plain_resize(array, target), atol=2e-5)


@pytest.mark.parametrize("grey", ["mean", "luminance"])
def test_colours_and_several_channels(described, grey):
    adapter, _, about = described("classification", (1, 32, 32), grey=grey)
    rng = np.random.default_rng(0)
    colour = scan_of(rng, (1, 20, 32), (1.0, 1.0, 1.0), channels=3)
    image, _ = prepare([colour.voxels], colour.spacing, about)
    np.testing.assert_allclose(image, adapter.unlabelled(colour).image.numpy(), atol=2e-5)
    several = dict(about, channels=["t1", "t2"], modalities=["mr", "ct"], in_channels=2)
    grey = [scan_of(rng, (1, 32, 32), (1.0, 1.0, 1.0)).voxels for _ in range(2)]
    image, fill = prepare(grey, (1, 1, 1), several)
    alone = [prepare([g], (1, 1, 1), dict(about, modalities=[m])) for g, m in zip(grey, ["mr", "ct"], strict=True)]
    np.testing.assert_array_equal(image, np.concatenate([a[0] for a in alone]))
    assert fill == pytest.approx(np.mean([a[1] for a in alone]))
    image, fill = prepare([grey[0], None], (1, 1, 1), several)
    np.testing.assert_array_equal(image[0], alone[0][0][0])
    assert (image[1] == np.float32(alone[0][1])).all()
    for wrong in ([grey[0]], [None, None], [grey[0], grey[1][:, :, :5]]):
        with pytest.raises(ValueError, match="channels"):
            prepare(wrong, (1, 1, 1), several)


@pytest.mark.parametrize("shape", [(16, 32, 32), (11, 40, 32), (19, 35, 20)])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_whole_scan_gets_the_labels_of_scanfoundry(described, shape, mirror):
    adapter, model, about = described(mirror=mirror)
    sample = adapter.unlabelled(scan_of(np.random.default_rng(1), shape, (1.0, 1.0, 1.0)))

    def network(window):
        with torch.no_grad():
            return model(torch.from_numpy(window)).numpy()

    logits = whole_logits(network, sample.image.numpy(), sample.fill, about)
    labels = standalone.label_map(logits, sample.shape, sample.spacing, about)
    predicted = adapter.predict([model], sample, CPU).labels
    assert len(np.unique(predicted)) > 1
    assert (labels == predicted).mean() > 0.9999


@pytest.mark.parametrize("mirror", [False, True])
def test_a_class_has_the_probability_of_scanfoundry(described, mirror):
    adapter, model, about = described("classification", mirror=mirror)
    sample = adapter.unlabelled(scan_of(np.random.default_rng(1), (9, 30, 21), (1.0, 1.2, 1.0)))
    image, _ = padded(sample.image.numpy(), sample.fill, about["patch"])
    np.testing.assert_allclose(image[None], centred(sample, adapter.spec.plan).numpy(), atol=1e-5)

    def network(window):
        with torch.no_grad():
            return model(torch.from_numpy(window)).numpy()

    found = probabilities(network, sample.image.numpy(), sample.fill, about)
    np.testing.assert_allclose(found, adapter.predict([model], sample, CPU), atol=1e-4)


def test_a_temperature_divides_the_logits(described):
    """Of one pass; with mirrorings it is applied to their mean."""
    _, _, about = described("classification")
    logits = np.array([[2.0, -1.0]], np.float32)
    found = probabilities(lambda window: logits, np.zeros((1, 4, 4, 4), np.float32), 0.0, dict(about, temperature=2.5))
    expected = np.exp(logits[0] / 2.5)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("module", [standalone, bundle_runner, onnx_runner])
def test_nothing_of_scanfoundry_is_imported_by_what_is_written(module):
    text = source_without_scanfoundry(module, {standalone.__name__: "preprocessing"})
    assert "import scanfoundry" not in text
    assert "from scanfoundry" not in text
    compile(text, "script", "exec")
