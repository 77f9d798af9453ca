"""The packaged catalogue, and what a catalogue may say."""

import pytest
import yaml

from scanfoundry.configs.errors import UserError
from scanfoundry.launch.zoo.card_parts import HUB_LICENCES
from scanfoundry.launch.zoo.catalogue import (
    catalogue,
    download_size,
    find_model,
    human,
    model_by_sha256,
    models_of_family,
)


def test_the_packaged_one_is_whole():
    known = catalogue()
    families = {entry.family for entry in known.values()}
    assert families == {"stunet", "mae", "openmind"}
    assert {f"stunet-{size}" for size in "sblh"} | {f"mae-vit-{size}" for size in "blh"} < known.keys()
    for entry in known.values():
        assert entry.licence in HUB_LICENCES
        assert entry.commercial_use == ("no" if "-nc" in entry.licence else "yes")
        assert download_size(entry)
        if entry.download.bytes is None and not entry.download.sha256:
            assert entry.download.evidence
    assert find_model("vit_base_patch16_224.mae").name == "mae-vit-b"
    assert model_by_sha256(known["stunet-s"].download.sha256).name == "stunet-s"
    assert model_by_sha256("0" * 64) is None
    assert [entry.name for entry in models_of_family("STUNET")] == [f"stunet-{size}" for size in "sblh"]


def test_what_is_said_of_the_released_stunets_agrees_with_the_loader():
    from scanfoundry.backbones.foreign.openmind import WHOLE_SCAN

    entry = catalogue()["stunet-s"]
    assert entry.spacing_mm == (1.5, 1.5, 1.5)
    assert "not clipped" in entry.preprocessing
    assert WHOLE_SCAN == {"percentiles": [0.0, 100.0], "zscore": "scan"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"commercial_use": "maybe"}, "commercial_use"),
        ({"price": 3}, "unknown key"),
        ({"name": "../x"}, "names must differ"),
        ({"download": {"file": "../x", "urls": ["http://a/x"], "evidence": ""}}, "file"),
        ({"download": {"file": "x", "urls": ["ftp://a/x"], "evidence": ""}}, "urls|scheme"),
        ({"download": {"file": "x", "urls": [], "evidence": ""}}, "urls"),
        ({"download": {"file": "x", "urls": ["http://a/x"], "sha256": "12", "evidence": ""}}, "sha256"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path, entry, change, said):
    good = entry().model_dump(mode="json")
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump({"models": [good]}))
    assert catalogue(path)["tiny"] == entry()
    path.write_text(yaml.safe_dump({"models": [good | change]}))
    with pytest.raises(UserError, match=said):
        catalogue(path)
    path.write_text(yaml.safe_dump({"models": [good, good]}))
    with pytest.raises(UserError, match="names must differ"):
        catalogue(path)


def test_sizes_for_people():
    assert [human(n) for n in (5, 999, 117_497_661, 11_700_000_000)] == ["5 B", "999 B", "117 MB", "11.7 GB"]
