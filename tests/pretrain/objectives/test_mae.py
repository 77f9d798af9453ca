"""MAE against the paper's step written plainly."""

import pytest
import torch

from scanforge.backbones.positions import sincos_positions
from scanforge.backbones.registry import build
from scanforge.backbones.vit import ViTConfig
from scanforge.configs.errors import UserError
from scanforge.pretrain.masking import block_mask
from scanforge.pretrain.objectives.mae import MAEConfig


@pytest.mark.parametrize("shape", [(1, 8, 24), (4, 8, 12)])
def test_prediction_equals_the_plain_restatement(shape):
    encoder = build(ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(2, 4, 4)))
    objective = MAEConfig(decoder_dim=64, decoder_depth=2, decoder_heads=2).build(encoder).double()
    grid, is_2d = encoder.grid(shape), shape[0] == 1
    mask = block_mask(torch.tensor([4, 9]), grid, 0.75)
    x = torch.randn(2, 1, *shape, dtype=torch.float64)
    head = objective.head_2d if is_2d else objective.head_3d
    with torch.no_grad():
        ours = objective.predict(x, mask)
        for sample in range(2):
            kept = [i for i, hidden in enumerate(mask[sample].flatten().tolist()) if not hidden]
            encoded = encoder.forward_tokens(x[sample : sample + 1], torch.tensor([kept]))[0]
            embedded = objective.decoder_embed(encoded)
            rows = [embedded[0]]
            positions = sincos_positions(grid, 64, is_2d)
            for place in range(grid[0] * grid[1] * grid[2]):
                known = place in kept
                row = embedded[1 + kept.index(place)] if known else objective.mask_token[0, 0]
                rows.append(row + positions[place])
            tokens = torch.stack(rows)[None]
            for block in objective.decoder_blocks:
                tokens = block(tokens)
            plain = head(objective.decoder_norm(tokens))[0, 1:]
            torch.testing.assert_close(ours[sample].flatten(1), plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("width", "size"), [(192, (192, 4, 6)), (384, (256, 4, 8)), (1024, (512, 8, 16))])
def test_decoder_defaults(width, size):
    assert MAEConfig().decoder_size(width) == size
    assert MAEConfig(decoder_dim=96, decoder_heads=3).decoder_size(width) == (96, size[1], 3)
    with pytest.raises(UserError, match="not a multiple of decoder_heads"):
        MAEConfig(decoder_dim=100, decoder_heads=3).decoder_size(width)
