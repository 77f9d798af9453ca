"""MAE against the paper's step written plainly."""

import pytest
import torch

from scanfoundry.backbones.layers.positions import sincos_positions
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.losses.gradient_map import gradient_map
from scanfoundry.pretrain.masking import block_mask, patchify, visible_indices
from scanfoundry.pretrain.objectives.mae import MAEConfig

SHAPES = [(1, 8, 24), (4, 8, 12)]


def make(**changes):
    encoder = build(ViTConfig(size="Ti", in_channels=2, patch_2d=(4, 4), patch_3d=(2, 4, 4)))
    return MAEConfig(decoder_dim=64, decoder_depth=1, decoder_heads=2, **changes).build(encoder).double()


def make_batch(shape):
    """Random crops with padding at the end of W in the first and an excluded box in the second."""
    voxels = torch.randn(2, 2, *shape, dtype=torch.float64)
    valid = torch.ones(2, 1, *shape, dtype=torch.bool)
    valid[0, ..., -5:] = False
    valid[1, ..., 2:5, 1:6] = False
    return Batch(voxels, valid, torch.tensor([4, 9]), ["a", "b"], ["mr", "ct"], ["s", "s"], 0)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_prediction_equals_the_plain_restatement(shape, registers):
    encoder = build(ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(2, 4, 4), registers=registers))
    objective = MAEConfig(decoder_dim=64, decoder_depth=2, decoder_heads=2).build(encoder).double()
    grid, is_2d = encoder.grid(shape), shape[0] == 1
    mask = block_mask(torch.tensor([4, 9]), grid, 0.75)
    x = torch.randn(2, 1, *shape, dtype=torch.float64)
    decoder = objective.decoder
    head = decoder.head_2d if is_2d else decoder.head_3d
    with torch.no_grad():
        ours = objective.predict_patches(x, mask)
        for sample in range(2):
            kept = [i for i, hidden in enumerate(mask[sample].flatten().tolist()) if not hidden]
            encoded = encoder.forward_tokens(x[sample : sample + 1], torch.tensor([kept]))[0]
            embedded = decoder.embed(encoded)
            rows = list(embedded[: 1 + registers])
            positions = sincos_positions(grid, 64, is_2d)
            for place in range(grid[0] * grid[1] * grid[2]):
                known = place in kept
                row = embedded[1 + registers + kept.index(place)] if known else decoder.mask_token[0, 0]
                rows.append(row + positions[place])
            tokens = torch.stack(rows)[None]
            for block in decoder.blocks:
                tokens = block(tokens)
            plain = head(decoder.norm(tokens))[0, 1 + registers :]
            torch.testing.assert_close(ours[sample].flatten(1), plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("width", "size"), [(192, (192, 4, 6)), (384, (256, 4, 8)), (1024, (512, 8, 16))])
def test_decoder_defaults(width, size):
    assert MAEConfig().decoder_size(width) == size
    assert MAEConfig(decoder_dim=96, decoder_heads=3).decoder_size(width) == (96, size[1], 3)
    with pytest.raises(UserError, match="not a multiple of decoder_heads"):
        MAEConfig(decoder_dim=100, decoder_heads=3).decoder_size(width)


def gradients_in_place(objective, batch):
    """The gradient of the loss for the gradient map's predictions, laid out as (B, L, V, C) by loops."""
    seen, decoder = [], objective.gradient_decoder
    handle = decoder.register_forward_hook(lambda module, given, out: seen.append(out))
    loss, metrics = objective(batch)
    handle.remove()
    of_hidden = torch.autograd.grad(loss, seen[0], retain_graph=True)[0]
    mask = objective.mask(batch).flatten(1)
    gradient = torch.zeros(2, mask.shape[1], of_hidden.shape[-1], dtype=torch.float64)
    prediction = torch.zeros_like(gradient)
    for sample in range(2):
        for number, place in enumerate(mask[sample].nonzero().flatten().tolist()):
            gradient[sample, place] = of_hidden[sample, number]
            prediction[sample, place] = seen[0].detach()[sample, number]
    return loss, metrics, (x.unflatten(-1, (-1, 2)) for x in (gradient, prediction))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_maps_loss_and_its_gradient_equal_a_loop(shape, normalise):
    """Hidden patches alone, known stencils alone, each patch normalised, at its weight beside the scan's own loss."""
    objective, batch = make(gradient_weight=0.3, normalise_target=normalise), make_batch(shape)
    loss, metrics, (gradient, prediction) = gradients_in_place(objective, batch)
    patch, mask = objective.patch(shape[0] == 1), objective.mask(batch).flatten(1)
    target, known = (patchify(x, patch) for x in gradient_map(batch.voxels, batch.valid))
    errors, expected = [], torch.zeros_like(prediction)
    for b, place in mask.nonzero().tolist():
        voxels = known[b, place, :, 0].nonzero().flatten().tolist()
        values = [float(target[b, place, v, c]) for v in voxels for c in range(2)]
        mean = sum(values) / max(len(values), 1)
        deviation = (sum((x - mean) ** 2 for x in values) / max(len(values) - 1, 1) + 1e-6) ** 0.5
        for v in voxels:
            for c in range(2):
                wanted = (
                    (float(target[b, place, v, c]) - mean) / deviation if normalise else float(target[b, place, v, c])
                )
                errors.append((b, float(prediction[b, place, v, c]) - wanted))
                expected[b, place, v, c] = errors[-1][1]
    torch.testing.assert_close(gradient, 0.3 * 2 * expected / len(errors), rtol=1e-10, atol=1e-14)
    for b in range(2):
        own = [error**2 for sample, error in errors if sample == b]
        assert metrics["gradient"][b].item() == pytest.approx(sum(own) / len(own), rel=1e-10)
    plain = make(normalise_target=normalise)
    assert not plain.load_state_dict(objective.state_dict(), strict=False).missing_keys
    mean = sum(error**2 for _, error in errors) / len(errors)
    assert loss.item() == pytest.approx(plain(batch)[0].item() + 0.3 * mean, rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_hidden_voxel_reaches_the_predicted_gradient_map(shape):
    objective, batch = make(gradient_weight=1.0), make_batch(shape)
    mask = objective.mask(batch)
    hidden = torch.nn.functional.interpolate(mask.double(), size=shape).bool()

    def predicted(voxels):
        keep = visible_indices(mask)
        encoded = objective.encode(voxels, keep)
        return objective.decode(objective.gradient_decoder, encoded, keep, mask, shape[0] == 1)

    voxels = batch.voxels.clone().requires_grad_()
    prediction = predicted(voxels)
    assert torch.equal(predicted(torch.where(hidden, 100 * torch.randn_like(voxels), voxels)), prediction)
    reach = torch.autograd.grad((prediction * torch.randn_like(prediction)).sum(), voxels)[0]
    assert torch.equal(reach != 0, ~hidden.expand_as(reach))


def test_flat_patches_of_a_gradient_map_are_finite_and_thin_crops_refused():
    objective, batch = make(gradient_weight=1.0), make_batch(SHAPES[0])
    batch.voxels[:] = 3.0
    loss, _ = objective(batch)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    with pytest.raises(UserError, match="too thin for a gradient map"):
        objective.check_shape((2, 8, 12))
    make().check_shape((2, 8, 12))


def test_pictures_show_the_gradient_map_too():
    objective, batch = make(gradient_weight=1.0), make_batch(SHAPES[1])
    columns = objective.show(batch)
    names = ("", ": visible", ": reconstruction")
    assert list(columns) == [f"{what}{name}" for what in ("scan", "gradient map") for name in names]
    assert torch.equal(columns["gradient map"], gradient_map(batch.voxels, batch.valid)[0])
