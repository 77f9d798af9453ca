"""Augmentation: batched, on the training device, a pure function of each sample's seed.

`pipeline.Augment` makes views of batches; `config.AugmentConfig` says which transforms each modality gets. For
fine-tuning `window` takes patches out of whole scans, with their labels and boxes; `deformation` bends them.
"""
