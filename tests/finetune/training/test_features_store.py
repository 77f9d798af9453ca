"""Features that are kept are those of the scan as it is now."""

import torch

from scanfoundry.finetune.training.features import FeatureStore


def test_features_of_a_scan_that_was_changed_are_computed_again(tmp_path):
    one, two = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for name in ("0f", "0f-3-1"):
        for content, made, expected in (("aa", one, one), ("aa", two, one), ("bb", two, two), ("aa", two, one)):
            store = FeatureStore(tmp_path, {"0f": content})
            assert torch.equal(store.get(name, lambda made=made: made).float(), expected)
