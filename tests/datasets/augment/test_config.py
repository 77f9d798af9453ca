import pytest
from pydantic import ValidationError

from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.presets import PRESETS
from scanfoundry.datasets.augment.transforms import KINDS, Transforms


def test_a_modality_replaces_only_the_switches_it_names():
    config = AugmentConfig.model_validate(
        {
            "default": {"gamma": {"gamma": [0.5, 2]}, "noise": {}},
            "modalities": {"us": {"gamma": None, "speckle": {"probability": 0.25}}},
        }
    )
    assert config.of("mr") == config.default
    assert config.of("us").gamma is None
    assert config.of("us").noise == config.default.noise
    assert config.of("us").speckle.probability == 0.25


def test_what_the_user_sets_goes_over_the_preset():
    config = AugmentConfig.model_validate(
        {"preset": "strong", "default": {"blur": None, "flip": None}, "modalities": {"ct": {"window": None}}}
    )
    strong = AugmentConfig(preset="strong")
    assert strong.of("us").blur
    assert config.of("us").blur is None
    assert strong.of("us").flip
    assert config.of("us").flip is None
    assert config.of("us").speckle == strong.of("us").speckle
    assert strong.of("ct").window
    assert config.of("ct").window is None


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "strong"},
        {"preset": "mild", "default": {"blur": None}, "modalities": {"ct": {"window": None}, "us": {"speckle": {}}}},
        {"default": {"noise": {}}},
    ],
)
def test_a_dump_read_again_is_the_same_augmentation(settings: dict):
    # A launched run reads the dump of the configuration: all switches of the preset were off in it.
    config = AugmentConfig.model_validate(settings)
    again = AugmentConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert all(again.of(modality) == config.of(modality) for modality in ("ct", "mr", "us", "xray"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"modalities": {"ct": {"invert": {}}}}, "never inverted"),
        ({"default": {"invert": {}}}, "never inverted"),
        ({"default": {"window": {}}}, "only CT"),
        ({"modalities": {"mr": {"window": {}}}}, "only CT"),
        ({"modalities": {"CTscan": {}}}, "did you mean 'ct'"),
        ({"default": {"gama": {}}}, "Extra inputs"),
        ({"default": {"gamma": {"gamma": [2, 0.5]}}}, "low, high"),
        ({"default": {"gamma": {"gamma": [0, 1]}}}, "greater than 0"),
        ({"default": {"erase": {"holes": [3, 1]}}}, "low, high"),
        ({"default": {"erase": {"holes": [1, 9]}}}, "less than or equal to 8"),
        ({"default": {"flip": {"axes": [3]}}}, "less than or equal to 2"),
        ({"default": {"noise": {"probability": 1.5}}}, "less than or equal to 1"),
        ({"default": {"low_resolution": {"zoom": [0.5, 2]}}}, "greater than or equal to 1"),
        ({"modalities": {"ct": {"window": {"width": [0.5, 1.2]}}}}, "less than or equal to 1"),
        ({"size_3d": [1, 64, 64]}, "greater than or equal to 2"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        AugmentConfig.model_validate(settings)


def test_inversion_by_default_is_accepted_where_ct_is_left_out():
    config = AugmentConfig.model_validate({"default": {"invert": {}}, "modalities": {"ct": {"invert": None}}})
    assert config.of("xr").invert
    assert not config.of("ct").invert


def test_presets_flip_only_where_either_side_is_as_plausible():
    for preset in PRESETS:
        config = AugmentConfig(preset=preset)
        for modality in ("ct", "mr", "xr", "pt", "unknown"):
            assert config.of(modality).flip is None
            assert config.of(modality).quarter_turn is None
        assert config.of("ct").invert is None
    for preset in ("mild", "strong"):
        assert AugmentConfig(preset=preset).of("us").flip.axes == (2,)
    assert [m for m in ("ct", "mr", "us", "xr", "mg", "pt") if AugmentConfig(preset="strong").of(m).invert] == ["xr"]


def test_every_switch_has_its_place_in_the_draws():
    assert list(KINDS) == list(Transforms.model_fields)
    for kind in KINDS.values():
        assert all(low <= high for low, high in kind().ranges())
