"""MAE on Primus against the whole step written plainly, in float64: tokens dropped, its own blocks decode."""

import math

import pytest
import torch
from objectives import randomised

from scanfoundry.backbones import primus
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.masking import block_mask
from scanfoundry.pretrain.objectives.mae import MAEConfig

HEADS, PAIRS = 2, 3  # of the small one: heads of 18 features, three pairs for each axis
PATCH, GRID = (2, 4, 2), (2, 3, 4)


@pytest.fixture
def backbone(monkeypatch):
    monkeypatch.setitem(primus.WIDTH_DEPTH_HEADS, "S", (36, 3, HEADS))
    return PrimusConfig(size="S", in_channels=2, patch=PATCH, grid=GRID)


def make_batch(shape):
    """Random crops with padding at the end of W in the first and an excluded box in the second."""
    torch.manual_seed(1)
    voxels = torch.randn(2, 2, *shape, dtype=torch.float64)
    valid = torch.ones(2, 1, *shape, dtype=torch.bool)
    valid[0, ..., -3:] = False
    valid[1, ..., 2:5, 1:6] = False
    return Batch(voxels, valid, torch.tensor([4, 9]), ["a", "b"], ["mr", "ct"], ["s", "s"], 0)


def normed(x, state, key):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-5).sqrt() * state[f"{key}.weight"] + state[f"{key}.bias"]


def linear(x, state, key):
    y = x @ state[f"{key}.weight"].T
    return y + state[f"{key}.bias"] if f"{key}.bias" in state else y


def turned(x, places):
    """Heads (heads, n, 18): pair k of an axis turned by position / 10000^(k / pairs)."""
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    angles = [[p[axis] / 10000 ** (k / PAIRS) for axis in range(3) for k in range(PAIRS)] for p in places]
    angle = torch.tensor(angles, dtype=torch.float64)
    return torch.view_as_real(z * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def through_blocks(tokens, places, state, key):
    """Tokens (n, F) at places through all blocks of one name."""
    n, dim = tokens.shape
    for i in range(len({name.removeprefix(f"{key}.").split(".")[0] for name in state if name.startswith(f"{key}.")})):
        block = f"{key}.{i}"
        y = normed(tokens, state, f"{block}.norm1")
        parts = (linear(y, state, f"{block}.attn.{part}_proj") for part in ("q", "k", "v"))
        q, k, v = (part.view(n, HEADS, dim // HEADS).transpose(0, 1) for part in parts)
        weights = (turned(q, places) @ turned(k, places).transpose(1, 2) / math.sqrt(dim // HEADS)).softmax(-1)
        y = normed((weights @ v).transpose(0, 1).reshape(n, dim), state, f"{block}.attn.norm")
        tokens = tokens + state[f"{block}.gamma_1"] * linear(y, state, f"{block}.attn.proj")
        y = normed(tokens, state, f"{block}.norm2")
        gate = linear(y, state, f"{block}.mlp.fc1_g")
        y = normed(gate * torch.sigmoid(gate) * linear(y, state, f"{block}.mlp.fc1_x"), state, f"{block}.mlp.norm")
        tokens = tokens + state[f"{block}.gamma_2"] * linear(y, state, f"{block}.mlp.fc2")
    return tokens


def between(table, grid):
    """Positions of a grid out of those of GRID: by loops, linear along each axis between the centres of cells."""
    volume = table.view(*GRID, -1)
    for axis, (size, own) in enumerate(zip(grid, GRID, strict=True)):
        rows = []
        for i in range(size):
            at = min(max((i + 0.5) * own / size - 0.5, 0.0), own - 1.0)
            low = int(at)
            high = min(low + 1, own - 1)
            rows.append((1 - at + low) * volume.select(axis, low) + (at - low) * volume.select(axis, high))
        volume = torch.stack(rows, dim=axis)
    return volume.flatten(0, 2)


def plain_step(state, batch, ratio, normalise):
    """The loss; a 2D scan is the volume that repeats it through a patch, and has a head of its own."""
    depth, *_ = shape = batch.voxels.shape[2:]
    patch = (1, *PATCH[1:]) if depth == 1 else PATCH
    grid = tuple(size // step for size, step in zip(shape, patch, strict=True))
    places = [(z, y, x) for z in range(grid[0]) for y in range(grid[1]) for x in range(grid[2])]
    kernel, errors = state["encoder.patch_embed.weight"], []
    positions = {part: between(state[f"{part}.pos_embed"][0], grid) for part in ("encoder", "decoder.blocks")}
    for sample, mask in enumerate(block_mask(batch.seeds, grid, ratio)[:, 0]):
        boxes = [tuple(slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True)) for place in places]
        seen = [number for number, place in enumerate(places) if not mask[place]]
        tokens = []
        for number in seen:
            voxels = batch.voxels[(sample, slice(None), *boxes[number])].expand(2, *PATCH)
            tokens.append((kernel * voxels).sum((1, 2, 3, 4)) + state["encoder.patch_embed.bias"])
        tokens = torch.stack(tokens) + positions["encoder"][seen]
        encoded = through_blocks(tokens, [places[number] for number in seen], state, "encoder.blocks")
        encoded = normed(encoded, state, "encoder.norm")
        full = [encoded[seen.index(n)] if n in seen else state["decoder.mask_token"][0, 0] for n in range(len(places))]
        full = torch.stack(full) + positions["decoder.blocks"]
        decoded = normed(through_blocks(full, places, state, "decoder.blocks.blocks"), state, "decoder.blocks.norm")
        predicted = linear(decoded, state, f"decoder.head_{2 if depth == 1 else 3}d")
        for number in set(range(len(places))) - set(seen):
            known = batch.valid[(sample, 0, *boxes[number])]
            values = batch.voxels[(sample, slice(None), *boxes[number])][:, known]
            guess = predicted[number].view(*patch, 2)[known].T
            if normalise and values.numel():
                spread = values.var() if values.numel() > 1 else torch.tensor(0.0)
                values = (values - values.mean()) / (spread + 1e-6).sqrt()
            errors.append((guess - values).square().flatten())
    return torch.cat(errors).mean()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape", [(4, 12, 8), (6, 8, 10), (1, 8, 10)], ids=["own grid", "interpolated", "2D"])
def test_the_step_on_a_primus_equals_the_plain_restatement(backbone, shape, normalise):
    """Loss and the gradients of all weights that it uses."""
    objective = randomised(MAEConfig(mask_ratio=0.6, normalise_target=normalise), backbone)
    batch = make_batch(shape)
    loss, _ = objective(batch)
    loss.backward()
    state = {key: value.detach().clone().requires_grad_() for key, value in objective.named_parameters()}
    plain = plain_step(state, batch, 0.6, normalise)
    plain.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-10, atol=0)
    for name, parameter in objective.named_parameters():
        if state[name].grad is None:
            assert parameter.grad is None, name
            assert "head" in name
        else:
            torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-7, atol=1e-10, msg=name)


def test_tokens_that_are_kept_equal_those_of_all_where_all_are_kept(backbone):
    encoder = randomised(MAEConfig(), backbone).encoder
    x = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    order = torch.stack((torch.arange(16), torch.arange(16).flip(0)))
    with torch.no_grad():
        whole, kept = encoder.forward_tokens(x), encoder.forward_tokens(x, order)
    torch.testing.assert_close(kept[0], whole[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kept[1], whole[1].flip(0), rtol=1e-10, atol=1e-10)


def test_the_decoder_has_two_blocks_of_the_encoders_width_or_as_many_as_told(backbone):
    for depth, expected in ((None, 2), (3, 3)):
        decoder = MAEConfig(decoder_depth=depth).build(build(backbone)).decoder
        assert len(list(decoder.blocks.block_modules())) == expected
        assert decoder.mask_token.shape == (1, 1, 36)
    for option in ({"decoder_dim": 36}, {"decoder_heads": 2}):
        with pytest.raises(UserError, match="blocks of its own width"):
            MAEConfig(**option).build(build(backbone))
