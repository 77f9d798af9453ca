"""Whole networks for larger kernels and for scans of the other dimension: what is exact, and what is refused."""

import pytest
import torch

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.parts import joined, split
from scanfoundry.backbones.models.release import Release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.transfer.adapt import AdaptConfig, adapted, advice
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError

STUNET = STUNetConfig(size="S", strides=((2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
RESENC = ResEncConfig(features=(4, 6, 8), blocks=(1, 2, 1), strides=((2, 2, 2), (2, 2, 1)))
MEDNEXT = MedNeXtConfig(size="S")
IMAGES, VOLUMES = {"crop_2d": (32, 32)}, {"crop_3d": (16, 32, 32)}


def whole(config):
    """A network with all outputs at full resolution alone, in float64."""
    network = build(config).decoder(3).double().eval()
    network.deep_supervision = False
    return network


def released(network, **facts):
    return Release(split(network, network.state_dict()), ReleaseInfo(backbone=network.config, **facts), [])


def filled(config, release):
    network = whole(config)
    network.load_state_dict(joined(network, network.state_dict(), release.parts))
    return network


def test_centre_keeps_the_function_of_a_whole_network_with_a_larger_kernel():
    network = whole(MEDNEXT)
    wanted = MedNeXtConfig(size="S", kernel=5)
    for how, exact in (("centre", True), ("upkern", False)):
        changed, said = adapted(released(network), AdaptConfig(kernel=how), wanted, False, True, "it")
        assert said == f"kernels of 3 enlarged to 5 by {how}"
        assert changed.info.backbone == wanted
        larger = filled(wanted, changed)
        for shape in ((17, 32, 20), (1, 32, 40)):
            x = torch.randn(1, 1, *shape, dtype=torch.float64)
            with torch.no_grad():
                close = torch.allclose(larger(x), network(x), rtol=0, atol=1e-10)
            assert close == exact


@pytest.mark.parametrize("config", [STUNET, RESENC], ids=["STU-Net", "ResEnc"])
def test_centre_is_exact_on_every_slice_from_images_to_volumes(config):
    """A volume of one image again and again: each slice of its prediction is that of the image."""
    network = whole(config)
    changed, said = adapted(released(network, **IMAGES), AdaptConfig(dimension="centre"), config, False, True, "it")
    assert said == "kernels inflated from images to volumes by centre"
    image = torch.randn(1, 1, 1, 32, 32, dtype=torch.float64)
    volume = image.expand(-1, -1, 8, -1, -1)
    with torch.no_grad():
        flat = network(image)
        found = filled(config, changed)(volume)
        untouched = network(volume)
        again = filled(config, changed)(image)
    torch.testing.assert_close(found, flat.expand_as(found), rtol=0, atol=1e-10)
    torch.testing.assert_close(again, flat, rtol=0, atol=1e-10)
    assert (untouched - flat).abs().max() > 1e-2  # what the slices beside the middle do that nothing has trained


@pytest.mark.parametrize("how", ["centre", "average", "fourier"])
def test_every_convolution_answers_a_constant_depth_as_its_image(how):
    network = whole(STUNET)
    changed, _ = adapted(released(network, **IMAGES), AdaptConfig(dimension=how), STUNET, True, True, "it")
    count = 0
    for part in ("encoder", "decoder"):
        for key, value in changed.parts[part].items():
            if value.dim() == 5 and value.shape[2] == 3:
                before = released(network).parts[part][key]
                assert value.shape == before.shape
                expected, found = before[:, :, 1], value.sum(dim=2)
                if how == "fourier":  # of constant images alone
                    expected, found = expected.sum(dim=(2, 3)), found.sum(dim=(2, 3))
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
                count += 1
    assert count == 2 * 6 + 2 * 5
    heads = changed.parts["head"], released(network).parts["head"]
    assert all(torch.equal(value, heads[1][key]) for key, value in heads[0].items())


def test_from_volumes_to_images_the_middle_does_what_the_whole_did():
    network = whole(STUNET)
    for how, expected in (("centre", lambda k: k[:, :, 1]), ("average", lambda k: k.sum(dim=2))):
        changed, said = adapted(released(network, **VOLUMES), AdaptConfig(dimension=how), STUNET, True, False, "it")
        assert said == f"kernels flattened from volumes to images by {how}"
        for key, value in changed.parts["encoder"].items():
            if value.dim() == 5 and value.shape[2] == 3:
                before = network.state_dict()[key]
                torch.testing.assert_close(value[:, :, 1], expected(before))
                assert not value[:, :, ::2].any()
    back, _ = adapted(
        Release(changed.parts, ReleaseInfo(backbone=STUNET, **IMAGES), []),
        AdaptConfig(dimension="average"), STUNET, False, True, "it",
    )  # fmt: skip
    key = "conv_blocks_context.0.0.conv1.weight"
    torch.testing.assert_close(back.parts["encoder"][key].sum(dim=2), network.state_dict()[key].sum(dim=2))


def test_a_transposed_convolution_of_its_stride_repeats_what_images_have_trained():
    network = whole(RESENC)
    changed, _ = adapted(released(network, **IMAGES), AdaptConfig(dimension="average"), RESENC, False, True, "it")
    kernel, before = changed.parts["decoder"]["transpconvs.1.weight"], network.state_dict()["transpconvs.1.weight"]
    assert kernel.shape == before.shape == (6, 4, 2, 2, 2)
    torch.testing.assert_close(kernel, before.mean(dim=2, keepdim=True).expand_as(before))


@pytest.mark.parametrize(
    ("config", "facts", "adapt", "wanted", "message"),
    [
        (MEDNEXT, {}, {}, MedNeXtConfig(size="S", kernel=5), "kernel 3, the run's is 5: set adapt.kernel=upkern"),
        (MEDNEXT, {}, {"kernel": "upkern"}, MEDNEXT, "adapt.kernel does nothing here: the kernels of it are those"),
        (MedNeXtConfig(size="S", kernel=5), {}, {"kernel": "centre"}, MEDNEXT, "cannot grow"),
        (STUNET, {}, {"kernel": "centre"}, STUNET, "adapt.kernel does nothing here"),
        (STUNET, VOLUMES, {"dimension": "centre"}, STUNET, "does nothing here: it was trained on volumes"),
        (ViTConfig(size="Ti"), IMAGES, {"dimension": "centre"}, ViTConfig(size="Ti"), "for convolutions; it is a vit"),
    ],
)  # fmt: skip
def test_what_does_nothing_or_does_not_fit_is_refused(config, facts, adapt, wanted, message):
    release = Release({"encoder": build(config).state_dict()}, ReleaseInfo(backbone=config, **facts), [])
    with pytest.raises(UserError, match=message):
        adapted(release, AdaptConfig.model_validate(adapt), wanted, False, True, "it")


def test_images_alone_before_volumes_are_said_with_the_choice():
    info = ReleaseInfo(backbone=STUNET, **IMAGES)
    assert "adapt.dimension=centre, average or fourier" in advice(info, AdaptConfig(), True, "it")
    assert advice(info, AdaptConfig(), False, "it") == ""
    assert advice(info, AdaptConfig(dimension="centre"), True, "it") == ""
    assert advice(ReleaseInfo(backbone=STUNET, **IMAGES, **VOLUMES), AdaptConfig(), True, "it") == ""
    assert advice(ReleaseInfo(backbone=ViTConfig(size="Ti"), **IMAGES), AdaptConfig(), True, "it") == ""
