"""Names of modalities: codes and own names are taken, slips are asked about, wherever one is told."""

import pytest
import warm
from pydantic import ValidationError

from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.modality import settled
from scanfoundry.datasets.shards.build import BuildOptions
from scanfoundry.datasets.shards.sizes import SHARD_MB
from scanfoundry.finetune.config.study import LabelledData


@pytest.mark.parametrize("name", ["ct", "mr", "us", "xr", "mg", "pt", "nm", "xa", "ot", "unknown", "micr", "oct",
                                  "microscopy", "other", "dermoscopy", "histology", "endoscopy", "fundus", "path",
                                  "bonescan", "x"])  # fmt: skip
def test_codes_and_own_names_are_taken(name):
    assert settled(name) == settled(name.upper()) == settled(f" {name} ") == name


@pytest.mark.parametrize(
    ("name", "code"),
    [("mri", "mr"), ("MRI", "mr"), ("M.R.", "mr"), ("MRT", "mr"), ("T1", "mr"), ("flair", "mr"), ("mrr", "mr"),
     ("CT-scan", "ct"), ("cta", "ct"), ("C.T.", "ct"), ("xray", "xr"), ("X-Ray", "xr"), ("x_ray", "xr"), ("cxr", "xr"),
     ("ultrasound", "us"), ("ultra sound", "us"), ("ultrasuond", "us"), ("PET", "pt"), ("mammography", "mg"),
     ("mamography", "mg"), ("SPECT", "nm")],
)  # fmt: skip
def test_slips_are_asked_about(name, code):
    for told in (
        lambda: BuildOptions(modality=name),
        lambda: LabelledData(path="x", modality=name),
        lambda: LabelledData(path="x", modality={"a": name}),
        lambda: AugmentConfig(modalities={name: {}}),
    ):
        with pytest.raises(ValidationError, match=f"did you mean '{code}'"):
            told()


def test_the_command_line_says_it_in_one_line(tmp_path):
    (tmp_path / "scans").mkdir()
    done = warm.run(
        [warm.SCANFOUNDRY, "data", "build", "scans", "--out", "OUT", "--modality", "MRI"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "scanfoundry: --modality: 'MRI' is no modality; did you mean 'mr'?\n"


def test_a_shard_has_one_size():
    from typer.main import get_command

    from scanfoundry.launch.cli.main import app

    build = get_command(app).commands["data"].commands["build"]
    assert BuildOptions().shard_mb == SHARD_MB == next(p.default for p in build.params if p.name == "shard_mb")
