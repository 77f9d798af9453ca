"""A batch: whatever is wrong with one input is a line of the table; a killed batch goes on where it was."""

import csv
import gzip
import json
import os
import signal
import time

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.appearance import look_of, profile_of
from scanfoundry.finetune.predict.prediction import SOME_FAILED, SomeFailed, predict
from scanfoundry.finetune.predict.progress import PROGRESS

AFFINE = np.diag([1.5, 1.5, 2.0, 1])
SHAPE = (18, 16, 20)


def noise(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def save(path, voxels=None, affine=AFFINE, unit="mm"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(noise() if voxels is None else voxels, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def rows_of(table):
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="session")
def profile():
    """Of an MR's noise."""
    from scanfoundry.datasets.readers import Scan

    return profile_of([look_of(Scan(noise(seed)[None], (1, 1, 1))) for seed in range(3)])


def hostile(root, dicom):
    """Twelve inputs that cannot be predicted, and a word of the reason for each."""
    good = save(root / "good.nii.gz").read_bytes()
    (root / "good.nii.gz").unlink()
    (root / "dead.nii.gz").symlink_to(root / "nowhere.nii.gz")
    os.mkfifo(root / "pipe.nii.gz")
    (root / "cut.nii.gz").write_bytes(good[: len(good) // 2])
    header = bytearray(gzip.decompress(good))
    header[40:48] = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    (root / "absurd.nii.gz").write_bytes(gzip.compress(bytes(header)))
    save(root / "metres.nii.gz", unit="meter")
    sitk.WriteImage(sitk.GetImageFromArray(noise(9, (20, 16, 18, 2)), isVector=True), root / "two.mha")
    (root / "text.nii.gz").write_text("not a scan")
    (root / "folder.nii.gz").mkdir()
    (root / "empty.nii.gz").write_bytes(b"")
    save(root / "nan.nii.gz", np.full(SHAPE, np.nan, np.float32))
    save(root / "five.nii.gz", np.zeros((6, 6, 6, 2, 2), np.float32))
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:12, 4:12, 4:12], labels[6:9, 6:9, 6:9] = 1, 2
    save(root / "labels.nii.gz", labels)
    return {
        "dead.nii.gz": "cannot be opened", "pipe.nii.gz": "no regular file", "cut.nii.gz": "not a readable NIfTI",
        "absurd.nii.gz": "cannot hold the shape", "metres.nii.gz": "counts in metres",
        "two.mha": "the scan has 2 channels, the model takes 1", "text.nii.gz": "does not begin with",
        "folder.nii.gz": "no scan in it",
        "empty.nii.gz": "does not begin with", "nan.nii.gz": "NaN", "five.nii.gz": "5D array",
        "labels.nii.gz": "looks like a label map",
    }  # fmt: skip


def test_forty_inputs_of_which_twelve_are_hostile(models, profile, dicom, tmp_path, caplog):
    from scanfoundry.launch.cli.main import app

    for number in range(28):
        folder, suffix = f"p{number % 3}", (".nii.gz", ".nii", ".nii.bz2", ".mgz")[number % 4]
        path = tmp_path / "in" / folder / f"scan{number:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image
        nib.save(kind(noise(number), AFFINE), path)
    reasons = hostile(tmp_path / "in", dicom)
    model = models("segmentation", profiles=[profile])
    words = ["predict", "--model", str(model), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    with pytest.raises(SomeFailed, match=r"12 inputs could not be predicted .*; 28 scans are in") as caught:
        app(args=[*words, "--device", "cpu"], standalone_mode=False)
    assert caught.value.exit_code == SOME_FAILED == 3
    told = caplog.text
    assert told.count("not predicted: ") == 12
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert len(rows) == 40
    failed = {row["file"]: row["reason"] for row in rows if row["reason"]}
    assert set(failed) == set(reasons)
    for name, word in reasons.items():
        assert word in failed[name], name
        assert str(tmp_path) not in failed[name]
    predicted = [row for row in rows if not row["reason"]]
    assert len(predicted) == 28
    assert all((tmp_path / "out" / row["output"]).is_file() for row in predicted)
    assert not (tmp_path / "out" / PROGRESS).exists()


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_failures_are_lines_of_every_table(models, tmp_path, task):
    save(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"")
    save(tmp_path / "in" / "c.nii.gz", noise(1))
    with pytest.raises(SomeFailed):
        predict(models(task), [tmp_path / "in"], tmp_path / "out", "cpu", tell=lambda line: None)
    if task == "detection":
        rows = json.loads((tmp_path / "out" / "predictions.json").read_text())["scans"]
    else:
        rows = rows_of(tmp_path / "out" / "predictions.csv")
        assert list(rows[0]) == ["file", "prediction", "lesion", "none", "reason"]
    assert [row["file"] for row in rows] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert [bool(row.get("reason")) for row in rows] == [False, True, False]


class Stop(BaseException):
    """As sudden as a kill, but for what Python tidies up."""


def stopped_after(monkeypatch, count):
    """Lets `count` inputs through, then ends in the middle of the next one's output."""
    from scanfoundry.finetune.predict import nifti
    from scanfoundry.finetune.predict.writing import Writer

    left = [count]
    put = Writer.put

    def put_or_stop(self, origin, ending, write):
        if left[0] == 0:
            self.intend(self.out / f"{origin.item.name}{ending}")
            (self.out / f"{origin.item.name}{ending}").write_bytes(b"half")
            raise Stop
        left[0] -= 1
        return put(self, origin, ending, write)

    monkeypatch.setattr(Writer, "put", put_or_stop)
    return nifti


def test_the_table_grows_and_the_same_command_goes_on(models, tmp_path, monkeypatch):
    for name in "abcde":
        save(tmp_path / "in" / f"{name}.nii.gz", noise(ord(name)))
    model = models("segmentation")
    predict(model, [tmp_path / "in"], tmp_path / "whole", "cpu")
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        with pytest.raises(Stop):
            predict(model, [tmp_path / "in"], tmp_path / "out", "cpu")
    out = tmp_path / "out"
    assert [row["file"] for row in rows_of(out / "predictions.csv")] == ["a.nii.gz", "b.nii.gz"]
    with pytest.raises(UserError, match="another model or other options"):
        predict(model, [tmp_path / "in"], out, "cpu", uncertainty=True)
    with pytest.raises(UserError, match="another model or other options"):
        predict(models("segmentation", modality="pt"), [tmp_path / "in"], out, "cpu")
    with (out / "predictions.csv").open("a") as stream:  # a line that a kill cut off
        stream.write("c.nii.gz,c.nii")
    with (out / PROGRESS).open("a") as stream:
        stream.write('{"done": "c", "st')
    (out / ".part-killed").mkdir()
    (out / ".c.nii.gz.77.part").write_bytes(b"half")
    (out / "b.nii.gz").write_bytes(b"damaged")  # what was finished is looked at
    before, lines = (out / "a.nii.gz").stat().st_mtime_ns, []
    written = predict(model, [tmp_path / "in"], out, "cpu", tell=lines.append)
    assert lines == ["going on: 1 of 5 inputs are predicted already"]
    assert (out / "a.nii.gz").stat().st_mtime_ns == before
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name
    assert sorted(written) == sorted(out.iterdir())
    with pytest.raises(UserError, match="is there already"):
        predict(model, [tmp_path / "in"], out, "cpu")


def test_an_input_that_changed_is_predicted_again_and_a_new_one_too(models, tmp_path, monkeypatch):
    for name in "abc":
        save(tmp_path / "in" / f"{name}.nii.gz", noise(ord(name)))
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        with pytest.raises(Stop):
            predict(models("segmentation"), [tmp_path / "in"], tmp_path / "out", "cpu")
    save(tmp_path / "in" / "a.nii.gz", noise(5))
    save(tmp_path / "in" / "d.nii.gz", noise(6))
    predict(models("segmentation"), [tmp_path / "in"], tmp_path / "out", "cpu", tell=lambda line: None)
    predict(models("segmentation"), [tmp_path / "in"], tmp_path / "whole", "cpu")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_boxes_grow_as_json_and_end_as_if_nothing_had_happened(models, tmp_path, monkeypatch):
    for name in "abcd":
        save(tmp_path / "in" / f"{name}.nii.gz", noise(ord(name)))
    model = models("detection")
    predict(model, [tmp_path / "in"], tmp_path / "whole", "cpu")
    from scanfoundry.finetune.predict.writing import Writer

    left, write = [3], Writer.write
    with monkeypatch.context() as patch:

        def stopping(self, *arguments):
            if left[0] == 0:
                raise Stop
            left[0] -= 1
            return write(self, *arguments)

        patch.setattr(Writer, "write", stopping)
        with pytest.raises(Stop):
            predict(model, [tmp_path / "in"], tmp_path / "out", "cpu")
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["scans"]) == 3
    predict(model, [tmp_path / "in"], tmp_path / "out", "cpu", tell=lambda line: None)
    assert (tmp_path / "out" / "predictions.json").read_bytes() == (
        tmp_path / "whole" / "predictions.json"
    ).read_bytes()


def test_kills_at_any_time_end_in_the_same_files(models, tmp_path):
    for number in range(6):
        save(tmp_path / "in" / f"{number}.nii.gz", noise(number))
    model, out = models("segmentation"), tmp_path / "out"
    started = time.monotonic()
    predict(model, [tmp_path / "in"], tmp_path / "whole", "cpu")
    whole, rng = time.monotonic() - started, np.random.default_rng(0)
    for _ in range(8):
        child = os.fork()
        if not child:
            predict(model, [tmp_path / "in"], out, "cpu", tell=lambda line: None)
            os._exit(0)
        time.sleep(float(rng.uniform(0.05, 0.4)) * whole)
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:  # it was done before
            break
    if (out / PROGRESS).exists() or not (out / "predictions.csv").exists():
        predict(model, [tmp_path / "in"], out, "cpu", tell=lambda line: None)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


def test_two_processes_do_not_share_a_folder(models, tmp_path):
    from scanfoundry.finetune.predict.progress import opened

    source = save(tmp_path / "in" / "a.nii.gz")
    with opened(tmp_path / "out", "x"), pytest.raises(UserError, match="another process predicts into"):
        predict(models("segmentation"), [source], tmp_path / "out", "cpu")


def test_a_full_disk_ends_the_batch_and_the_same_command_goes_on(models, tmp_path, monkeypatch):
    from scanfoundry.finetune.predict import nifti

    for name in "ab":
        save(tmp_path / "in" / f"{name}.nii.gz", noise(ord(name)))
    with monkeypatch.context() as patch:

        def full(*arguments):
            raise OSError(28, "No space left on device")

        patch.setattr(nifti, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            predict(models("segmentation"), [tmp_path / "in"], tmp_path / "out", "cpu")
    written = predict(models("segmentation"), [tmp_path / "in"], tmp_path / "out", "cpu")
    assert [path.name for path in written] == ["a.nii.gz", "b.nii.gz", "predictions.csv"]


def test_names_that_are_no_text_and_files_called_what_they_are_not(models, tmp_path):
    source = save(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii").write_bytes(source.read_bytes())  # gzip that is not called so
    os.rename(source, os.fsencode(tmp_path / "in") + b"/\xff\xfe.nii.gz")
    written = predict(models("segmentation"), [tmp_path / "in"], tmp_path / "out", "cpu")
    rows = rows_of(written[-1])
    assert [row["file"] for row in rows] == ["b.nii", r"\xff\xfe.nii.gz"]
    assert all(nib.load(path).shape == SHAPE for path in written[:-1])


def test_an_input_that_is_no_file_is_a_line_and_one_that_is_missing_a_mistake(models, tmp_path):
    good = save(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "dead.nii.gz").symlink_to("nowhere")
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(UserError, match=r"missing\.nii\.gz' does not exist") as caught:
        predict(models("segmentation"), [good, tmp_path / "missing.nii.gz"], tmp_path / "out", "cpu")
    assert not isinstance(caught.value, SomeFailed)
    given = [good, tmp_path / "dead.nii.gz", tmp_path / "folder.nii.gz"]
    with pytest.raises(SomeFailed, match="2 inputs could not"):
        predict(models("segmentation"), given, tmp_path / "out", "cpu", tell=lambda line: None)
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert {row["file"]: row["reason"] for row in rows} == {
        "dead.nii.gz": "a link that leads to nothing", "folder.nii.gz": "a folder, and no scan in it", "a.nii.gz": "",
    }  # fmt: skip


def test_channels_that_fit_no_case_are_lines(models, tmp_path, dicom):
    for name in ("a_t1", "a_flair", "b_t1", "b-t1", "c_dwi"):
        save(tmp_path / "in" / f"{name}.nii.gz")
    dicom.slices(tmp_path / "in" / "series", [(0.0, 0.0, 2.0 * n) for n in range(4)])
    with pytest.raises(SomeFailed, match="4 inputs"):
        predict(
            models("segmentation", channels=("t1", "flair")), [tmp_path / "in"], tmp_path / "out", "cpu",
            tell=lambda line: None,
        )  # fmt: skip
    rows = {row["file"]: row["reason"] for row in rows_of(tmp_path / "out" / "predictions.csv")}
    assert rows["a_t1.nii.gz"] == ""
    assert "two files for channel 't1'" in rows["b_t1.nii.gz"]
    assert "none of the channels" in rows["c_dwi.nii.gz"]
    assert "takes files called after them" in rows["series/0000.dcm"]


def test_a_grid_beyond_memory_is_a_line(models, tmp_path):
    save(tmp_path / "in" / "a.nii.gz")
    save(tmp_path / "in" / "coarse.nii.gz", noise(0, (40, 40, 40)), np.diag([90.0, 90, 90, 1]))
    save(tmp_path / "in" / "fine.nii.gz", noise(0, (40, 40, 40)), np.diag([0.01, 0.01, 0.01, 1]))
    with pytest.raises(SomeFailed, match="2 inputs"):
        predict(models("segmentation"), [tmp_path / "in"], tmp_path / "out", "cpu", tell=lambda line: None)
    rows = {row["file"]: row["reason"] for row in rows_of(tmp_path / "out" / "predictions.csv")}
    assert "at most 1,073,741,824 voxels are made" in rows["coarse.nii.gz"]
    assert "nothing is left to see" in rows["fine.nii.gz"]
