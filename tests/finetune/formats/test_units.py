"""Sizes and modalities that cannot be meant are told before anything is trained, with the file's name."""

import json

import nibabel as nib
import numpy as np
import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.run_study import prepare
from scanfoundry.finetune.study.split import trial_cases
from scanfoundry.finetune.study.trial import digest_of_trial


@pytest.fixture
def made(tmp_path):
    """Ten scans and label maps; `change` may put another unit and size on the one that is called 'odd'."""

    def make(affine, unit):
        rng = np.random.default_rng(0)
        for number in range(10):
            name = "odd" if number == 4 else f"case{number}"
            voxels = rng.normal(100, 10, (24, 20, 16)).astype(np.float32)
            labels = np.zeros((24, 20, 16), np.uint8)
            labels[4:9, 4:9, 4:9] = 1
            for folder, array in (("images", voxels), ("labels", labels)):
                (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
                image = nib.Nifti1Image(array, affine if name == "odd" else np.eye(4))
                image.header.set_xyzt_units(unit if name == "odd" else "mm")
                nib.save(image, tmp_path / "data" / folder / f"{name}.nii.gz")
        return tmp_path / "data"

    return make


def test_microns_and_metres_are_what_they_say(made, study):
    settled = prepare(study("segmentation", made(np.diag([1000.0, 1000, 1000, 1]), "micron"), shots=["all"]))
    assert settled.spec.plan.spacing == (1.0, 1.0, 1.0)
    assert {spacing for _, _, spacing in settled.checked.grids.values()} == {(1.0, 1.0, 1.0)}


@pytest.mark.parametrize(
    ("affine", "unit", "words"),
    [
        ((1, 1, 1), "meter", r"odd\.nii\.gz: voxels of 1000 x 1000 x 1000 mm .* counts in metres"),
        ((0.5, 0.5, 0.5), "micron", r"odd\.nii\.gz: voxels of 0\.0005"),
        ((99, 99, 99), "mm", r"odd\.nii\.gz: its voxels of 99 x 99 x 99 mm .* at most 1,073,741,824 voxels"),
        ((0.01, 0.01, 0.01), "mm", r"odd\.nii\.gz: .* in which nothing is left to see"),
    ],
)
def test_sizes_that_cannot_be_meant_name_the_file(made, study, affine, unit, words):
    config = study("segmentation", made(np.diag([*map(float, affine), 1.0]), unit), shots=["all"])
    with pytest.raises(UserError, match=words):
        prepare(config)
    assert not (config.run_dir / "cells").exists()


def test_the_profile_is_of_the_pool_and_changes_no_result(made, study):
    config = study("segmentation", made(np.eye(4), "mm"), shots=["all"])
    settled = prepare(config)
    (profile,) = settled.spec.profiles
    assert profile.scans == len(settled.sides.pool) < 10
    assert (profile.ct, profile.coloured, profile.modalities) == (0.0, 0.0, [])
    assert type(settled.spec).model_validate(json.loads(settled.spec.model_dump_json())) == settled.spec
    cases = trial_cases(settled.sides, "all", 0, config.self_training)
    others = settled.spec.model_copy(update={"profiles": []})
    parts = (config.arms[0], cases, settled.checked, "")
    assert digest_of_trial(config, settled.spec, *parts) == digest_of_trial(config, others, *parts)


def test_a_header_that_says_another_modality_is_asked_about(study, dicom, tmp_path, fixed_key):
    key_file = fixed_key("summer")  # of each class a patient is trained and tested on
    for number in range(6):
        positions = [(0.0, 0.0, 2.0 * n) for n in range(4)]
        dicom.slices(
            tmp_path / "images" / f"c{number}", positions, PatientID=f"K-{number}", SeriesInstanceUID=f"1.2.3.{number}",
            StudyInstanceUID=f"1.2.4.{number}",
        )  # fmt: skip
    (tmp_path / "labels.csv").write_text("id,class\n" + "".join(f"c{n},{'ab'[n % 2]}\n" for n in range(6)))
    config = study("classification", tmp_path, shots=["all"])
    told = LabelledData.model_validate(
        {"images": tmp_path / "images", "labels": tmp_path / "labels.csv", "modality": "mr", "key_file": key_file}
    )
    with pytest.raises(UserError, match=r"0000\.dcm: its header says ct, data.modality says mr: set data.modality=ct"):
        prepare(config.model_copy(update={"data": told}))
    right = told.model_copy(update={"modality": "ct"})
    assert prepare(config.model_copy(update={"data": right})).spec.profiles[0].modalities == ["ct"]
