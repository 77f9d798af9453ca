"""What is known of a scan besides its voxels: masks, boxes, classes, regression targets."""

from scanforge.datasets.labels.labels import Box, LabelRef, Labels

__all__ = ["Box", "LabelRef", "Labels"]
