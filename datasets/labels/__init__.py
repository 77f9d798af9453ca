"""Labels: what is known of a scan besides its voxels (masks, boxes, classes, numbers)."""

from scanfoundry.datasets.readers.labels import Box, LabelRef, Labels

__all__ = ["Box", "LabelRef", "Labels"]
