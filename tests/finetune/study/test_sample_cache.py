"""A case is read once for all trials of a study, and what is read from the cache is what was read from the file."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, fields, replace

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.cases.sources import FileScan
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.run_study import prepare, run
from scanfoundry.finetune.sample import Sample
from scanfoundry.finetune.study import sample_cache
from scanfoundry.finetune.study.sample_cache import SAMPLES, SampleCache
from scanfoundry.finetune.study.sample_file import NotStorable, pack, unpack
from scanfoundry.finetune.study.split import trial_cases
from scanfoundry.finetune.study.trial import digest_of_trial

TINY = {"name": "resenc", "features": [8, 12, 16], "blocks": [1, 1, 1], "strides": [[2, 2, 2], [2, 2, 2]]}
SLICES = {"patch": [1, 48, 48], "batch": 4}


@pytest.fixture(autouse=True)
def the_same_patients_each_time(site_key_file, fixed_key, monkeypatch):
    monkeypatch.setenv("SCANFOUNDRY_KEY_FILE", str(fixed_key("samples")))
    monkeypatch.setattr(sample_cache, "RESERVE", 0)  # however full the disk of the tests is


def check_same(one, other):
    """Bit for bit, types and order in memory included."""
    for name in (field.name for field in fields(Sample)):
        a, b = getattr(one, name), getattr(other, name)
        assert type(a) is type(b), name
        parts = [(a.corners, b.corners), (a.labels, b.labels)] if isinstance(a, Boxes) else [(a, b)]
        for x, y in parts:
            if isinstance(x, torch.Tensor | np.ndarray):
                assert x.dtype == y.dtype
                assert x.shape == y.shape
                assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
                order = [np.argsort(np.negative(np.asarray(each).strides), kind="stable").tolist() for each in (x, y)]
                assert order[0] == order[1]
            else:
                assert x == y, name
    assert (one.target is one.truth) == (other.target is other.truth)


@pytest.fixture
def cached(study, volumes, slices, tmp_path):
    """The reader of a study's cases through a cache, what reads them without, and lines that were logged."""

    def make(task, limit=1e9, **options):
        data = volumes if task == "segmentation" else slices
        settled = prepare(study(task, data, backbone=TINY, **options))
        lines = []
        cache = SampleCache(tmp_path / SAMPLES, settled.checked, limit, lines.append)
        adapter = adapter_for(settled.spec).surveyed(settled.sides.test, settled.checked)
        return cache, cache.reader(adapter), adapter, settled, lines

    return make


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("segmentation", {}),
        ("segmentation", {"plan": {"spacing": [1.2, 1.7, 2.1], "batch": 2}}),
        ("classification", {"plan": SLICES}),
        ("detection", {"plan": SLICES}),
    ],
)
def test_a_kept_sample_is_the_fresh_one(cached, monkeypatch, task, options):
    _, reader, adapter, settled, lines = cached(task, **options)
    for case in settled.sides.test[:4]:
        fresh = adapter.load(case)
        check_same(reader.labelled(case), fresh)
        with monkeypatch.context() as patched:
            patched.setattr(FileScan, "read", lambda self: pytest.fail(f"{self} is read again"))
            check_same(reader.labelled(case), fresh)
    case = settled.sides.test[0]
    settled.checked.scan_digests[case.key] = settled.checked.digests[case.key]
    for _ in range(2):
        check_same(reader.unlabelled(replace(case, target=None)), adapter.read(case)[1])
    assert not lines


@pytest.mark.parametrize("target", [None, 3, 2.5, "array", "boxes", "no boxes"])
def test_every_kind_of_sample_comes_back(target):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(5, 2, 7, 4)).astype(np.float32)).permute(1, 3, 2, 0)
    boxes = Boxes(rng.normal(size=(3, 6)), np.arange(3))
    made = {
        "array": np.asfortranarray(rng.integers(0, 9, (4, 7, 5), np.uint8)), "boxes": boxes,
        "no boxes": Boxes(np.zeros((0, 6)), np.zeros(0, np.int64)),
    }  # fmt: skip
    truth = made.get(target, target)
    sample = Sample(
        image, -1.25, (4, 7, 5), (1.5, 0.1 + 0.2, 1.0), "SPR", truth, truth, torch.tensor([True, False]), 2.0
    )
    check_same(unpack(pack(sample, Boxes), Boxes), sample)
    other = replace(sample, target=None, present=None)
    check_same(unpack(pack(other, Boxes), Boxes), other)


def test_a_target_of_an_unknown_kind_is_not_stored():
    sample = Sample(torch.zeros(1, 2, 2, 2), 0.0, (2, 2, 2), (1.0, 1.0, 1.0), "", {"a": 1}, None)
    with pytest.raises(NotStorable):
        pack(sample, None)


def test_a_damaged_sample_is_read_anew(cached):
    _, reader, _, settled, lines = cached("segmentation")
    case = settled.sides.test[0]
    fresh = reader.labelled(case)
    (path,) = reader._cache._folder.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:3], b"", whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]):
        path.write_bytes(damaged)
        check_same(reader.labelled(case), fresh)
        assert "is damaged: its case is read again" in lines.pop()
        assert path.read_bytes() == whole


def test_what_has_no_room_is_not_kept_and_said_once(cached, monkeypatch):
    cache, reader, adapter, settled, lines = cached("segmentation")
    first, second, third = settled.sides.test[:3]
    reader.labelled(first)
    (path,) = cache._folder.iterdir()
    cache._limit = 1.5 * path.stat().st_size
    for case in (second, third, second):
        check_same(reader.labelled(case), adapter.load(case))
    assert [each.name for each in cache._folder.iterdir()] == [path.name]
    assert len(lines) == 1
    assert "further cases are not kept" in lines[0]

    monkeypatch.setattr(sample_cache, "RESERVE", 1 << 60)  # a disk that is nearly full
    cache, reader, _, _, lines = cached("segmentation")
    reader.labelled(second)
    assert [each.name for each in cache._folder.iterdir()] == [path.name]
    assert len(lines) == 1


def test_samples_of_another_plan_go(cached):
    cache, reader, _, settled, _ = cached("segmentation")
    reader.labelled(settled.sides.test[0])
    (path,) = cache._folder.iterdir()
    (cache._folder / ".x.1.part").write_bytes(b"of a killed writer")
    cache.tidy(settled.spec.model_copy(update={"temperature": 2.0}))  # which no case is read by
    assert list(cache._folder.iterdir()) == [path]
    cache.tidy(settled.spec.model_copy(update={"modality": "ct"}))
    assert not list(cache._folder.iterdir())


def without_times(results):
    found = json.loads(results.read_text())
    for trial in found["cells"]:
        trial.pop("spent")
        for history in trial["histories"]:
            history.pop("seconds")
    return found


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_case_is_read_once_however_many_trials_there_are(study, volumes, slices, tmp_path, monkeypatch, task):
    reads, real, plan = Counter(), FileScan.read, {} if task == "segmentation" else SLICES
    data = volumes if task == "segmentation" else slices
    made = {"backbone": TINY, "seeds": [0, 1], "shots": [4 if plan == {} else 10], "plan": plan,
            "schedule": {"steps": 2, "warmup_steps": 1}}  # fmt: skip

    def counted(self):
        if not self.mask:
            reads[str(self)] += 1
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(FileScan, "read", counted)
        settled = prepare(study(task, data, **made))
        checked = Counter(reads)
        reads.clear()
        kept = run(study(task, data, **made))
        reads -= checked  # every start of a study looks whether the data are what they were
    tested = {str(case.image) for case in settled.sides.test}
    assert {name for name, count in reads.items() if name in tested} == tested
    assert set(reads.values()) == {1}
    assert not (kept.run_dir / SAMPLES).exists()
    plain = run(study(task, data, run_dir=tmp_path / "plain", sample_cache_gb=0, **made))
    assert not (plain.run_dir / SAMPLES).exists()
    assert without_times(kept.results) == without_times(plain.results)
    weights = [(each.run_dir / "model.safetensors").read_bytes() for each in (kept, plain)]
    assert weights[0] == weights[1]


def test_a_study_of_a_single_trial_keeps_no_samples(study, slices, monkeypatch):
    written = []
    monkeypatch.setattr(SampleCache, "_write", lambda self, path, content: written.append(path))
    made = {"backbone": TINY, "plan": SLICES, "schedule": {"steps": 1, "warmup_steps": 1}, "shots": [4]}
    run(study("classification", slices, seeds=[0], **made))
    assert not written
    run(study("classification", slices, seeds=[0, 1], **made))
    assert written


def test_a_header_that_was_changed_changes_the_trial_and_the_sample(study, volumes, tmp_path):
    shutil.copytree(volumes, data := tmp_path / "data")
    config = study("segmentation", data, backbone=TINY)
    digests, names = set(), set()
    for _ in range(2):
        settled = prepare(config)
        case = settled.sides.test[0]
        cases = trial_cases(settled.sides, 2, 0, config.self_training)
        digests.add(digest_of_trial(config, settled.spec, config.arms[0], cases, settled.checked, ""))
        names.add(SampleCache(tmp_path, settled.checked, 1e9, print)._name(case, settled.spec, ""))
        file = nib.load(str(case.image))
        nib.save(nib.Nifti1Image(file.get_fdata(dtype=np.float32), file.affine * [[1.01]]), str(case.image))
        mask = nib.load(str(case.target))
        nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), file.affine * [[1.01]]), str(case.target))
    assert (len(digests), len(names)) == (2, 2)


@pytest.mark.parametrize("target", [np.array([{}], object), np.array([(1, 2.0)], [("a", int), ("b", float)])])
def test_arrays_that_are_more_than_numbers_are_not_stored(target):
    sample = Sample(torch.zeros(1, 2, 2, 2), 0.0, (2, 2, 2), (1.0, 1.0, 1.0), "", target, target)
    with pytest.raises(NotStorable):
        pack(sample, None)


def test_a_sample_of_a_plug_in_that_holds_more_is_not_stored():
    @dataclass
    class More(Sample):
        more: int = 1

    with pytest.raises(NotStorable):
        pack(More(torch.zeros(1, 2, 2, 2), 0.0, (2, 2, 2), (1.0, 1.0, 1.0), "", 1, 1), None)
    with pytest.raises(NotStorable):
        pack(Sample(torch.zeros(1, 2, 2, 2), np.float32(0), (2, 2, 2), (1.0, 1.0, 1.0), "", 1, 1), None)


def test_a_file_that_another_process_just_renamed_is_no_full_disk(cached):
    cache, reader, _, settled, lines = cached("segmentation")
    reader.labelled(settled.sides.test[0])
    (cache._folder / ".x-y.1.part").symlink_to(cache._folder / "gone")
    reader.labelled(settled.sides.test[1])
    assert not lines
    assert len([path for path in cache._folder.iterdir() if path.is_file()]) == 2
    assert cache._folder.stat().st_mode & 0o077 == 0  # whole scans are for nobody else
