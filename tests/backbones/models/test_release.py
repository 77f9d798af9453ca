"""Releases: what is written is read back; what is damaged, mixed up or foreign is refused in one line."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import scanfoundry.backbones as backbones
from scanfoundry.backbones.models import patients
from scanfoundry.backbones.models.description import ReleaseInfo, SourceRecord
from scanfoundry.backbones.models.patients import PatientList
from scanfoundry.backbones.models.release import load_encoder, load_release, remove_leftovers, save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNet, STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError

STRIDES = ((2, 2, 2),) * 4 + ((1, 1, 2),)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return build(STUNetConfig(size="S", strides=STRIDES))


@pytest.fixture
def folder(tmp_path, encoder):
    info = ReleaseInfo(
        backbone=encoder.config,
        objective="spark",
        step=7,
        intensity={"ct_window": [-1000.0, 1000.0]},
        crop_3d=(32, 48, 32),
        sources=(SourceRecord(name="a", manifest_sha256="00" * 32, scans=3),),
        licence="CC-BY-4.0",
    )
    save_release(tmp_path / "run", {"encoder": encoder.state_dict()}, info, ["b" * 32, "a" * 32])
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["", "model.safetensors", "model.json"])
def test_round_trip_by_folder_or_file(folder, encoder, name):
    loaded, info = load_encoder(folder / name)
    assert loaded.config == encoder.config
    assert loaded.config.strides == STRIDES
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in encoder.state_dict().items())
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    assert (info.objective, info.step, info.patients, info.axis_order) == ("spark", 7, 2, "D,H,W")
    assert load_release(folder / name).patients == ["a" * 32, "b" * 32]
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors", "patients.txt"]


def test_the_loaded_encoder_computes_the_same_and_trains(tmp_path):
    original = build(ViTConfig(size="Ti"))
    save_release(tmp_path, {"encoder": original.state_dict()}, ReleaseInfo(backbone=original.config), [])
    loaded, info = backbones.load(tmp_path)
    assert info.backbone == ViTConfig(size="Ti")
    for shape in ((1, 32, 48), (8, 16, 16)):
        x = torch.randn(1, 1, *shape)
        assert torch.equal(loaded(x)[0], original(x)[0])
    loaded.pooled(x).sum().backward()
    assert loaded.norm.weight.grad is not None


def test_a_list_of_patients_is_made_once(tmp_path, encoder, monkeypatch):
    info = ReleaseInfo(backbone=encoder.config)
    seen = PatientList.of({"c" * 32, "a" * 32})
    monkeypatch.setattr(patients, "sorted", None, raising=False)  # from here on nothing is sorted
    for name in ("one", "two"):
        save_release(tmp_path / name, {"encoder": encoder.state_dict()}, info, seen)
        assert load_release(tmp_path / name).patients == ["a" * 32, "c" * 32]


def test_what_a_killed_writer_left_goes(folder):
    kept = sorted(path.name for path in folder.iterdir())
    (folder / ".model.safetensors.17.part").write_bytes(b"half")
    (folder / ".notes.17.part").write_text("of somebody else")
    remove_leftovers(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".notes.17.part", *kept]


def test_loading_moves_no_random_state(folder):
    before = torch.get_rng_state()
    load_encoder(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_load_by_name_looks_in_the_models_folder(folder, monkeypatch):
    monkeypatch.setenv("SCANFOUNDRY_MODELS", str(folder.parent))
    _, info = backbones.load("run")
    assert info.step == 7
    with pytest.raises(UserError, match="no file, run folder or installed model 'nothing'"):
        backbones.load("nothing")


def test_the_package_itself_imports_no_torch():
    code = "import sys, scanfoundry.backbones; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
            check=False,
        ).returncode
        == 0
    )


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "patients.txt"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_truncated_files_are_refused(folder, name, keep):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=name):
        load_release(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "patients.txt"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_release(folder)


def test_one_flipped_byte_in_the_weights_is_refused(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="checksum differs"):
        load_encoder(folder)


def edit(folder, **changes):
    info = json.loads((folder / "model.json").read_text())
    info.update(changes)
    (folder / "model.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "format version 3, this scanfoundry reads 1 and 2"),
        ({"format_version": None}, "format version None"),
        ({"backbone": {"name": "resnet"}}, "backbone"),
        ({"backbone": {"name": "stunet", "size": "B", "strides": STRIDES}}, "do not fit.*should be"),
        ({"backbone": {"name": "vit", "size": "Ti"}}, "do not fit"),
        ({"step": "many"}, "step"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_description_is_refused(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(UserError, match=message) as raised:
        load_encoder(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[]", "{", "\x00\x01", "null"])
def test_a_description_that_is_no_object_is_refused(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json"):
        load_release(folder)


def test_weights_with_a_right_checksum_but_another_shape_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["encoder.conv_blocks_context.0.0.conv1.weight"] = torch.zeros(16, 3, 3, 3, 3)
    save_file(weights, folder / "model.safetensors")
    from scanfoundry.configs.files import sha256_of

    edit(folder, weights_sha256=sha256_of(folder / "model.safetensors"))
    with pytest.raises(UserError, match=r"conv1\.weight is \(16, 3, 3, 3, 3\), should be \(16, 1, 3, 3, 3\)"):
        load_encoder(folder)


def test_only_an_encoders_weights_can_be_released(tmp_path, encoder):
    whole = STUNet(encoder, num_classes=2)
    with pytest.raises(ValueError, match=r"conv_blocks_localization.* should be absent"):
        save_release(tmp_path, {"encoder": whole.state_dict()}, ReleaseInfo(backbone=encoder.config), [])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_release_whole(folder, encoder, monkeypatch):
    monkeypatch.setattr(
        "scanfoundry.backbones.models.release.os.fsync", lambda _: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        save_release(folder, {"encoder": encoder.state_dict()}, ReleaseInfo(backbone=encoder.config, step=8), [])
    assert load_release(folder).info.step == 7
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors", "patients.txt"]


def test_weights_replaced_after_their_checksum_was_taken_are_not_loaded(folder, encoder, monkeypatch):
    import scanfoundry.backbones.models.release as release

    others = {key: torch.zeros_like(value) for key, value in encoder.state_dict().items()}
    save_file(others, folder / "others")
    real = release.load_file

    def replaced(path):
        (folder / "others").replace(folder / "model.safetensors")
        return real(path)

    monkeypatch.setattr(release, "load_file", replaced)
    loaded = load_release(folder).encoder
    assert all(torch.equal(value, loaded[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(UserError, match="its checksum differs"):
        load_release(folder)


def test_a_file_of_an_encoder_alone_still_loads(folder, encoder):
    """Version 1: the names of the weights are the encoder's own."""
    from scanfoundry.configs.files import sha256_of

    weights = {name.removeprefix("encoder."): value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    content = json.loads((folder / "model.json").read_text())
    for key in ("parts", "head"):
        del content[key]
    old = {"format_version": 1, "weights_sha256": sha256_of(folder / "model.safetensors")}
    (folder / "model.json").write_text(json.dumps(content | old))
    release = load_release(folder)
    assert release.parts.keys() == {"encoder"}
    loaded, _ = load_encoder(folder)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in encoder.state_dict().items())


def test_a_decoder_must_be_the_backbones_own(tmp_path, encoder):
    decoder = encoder.feature_decoder().state_dict()
    parts = {"encoder": encoder.state_dict(), "decoder": decoder}
    save_release(tmp_path / "both", parts, ReleaseInfo(backbone=encoder.config), [])
    read = load_release(tmp_path / "both")
    assert read.info.parts == ("encoder", "decoder")
    assert all(torch.equal(value, read.parts["decoder"][key]) for key, value in decoder.items())
    del decoder["upsample_layers.0.conv.weight"]
    with pytest.raises(ValueError, match=r"upsample_layers\.0\.conv\.weight is absent"):
        save_release(tmp_path / "less", parts, ReleaseInfo(backbone=encoder.config), [])
