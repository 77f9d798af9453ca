"""Probes: how well the frozen encoder of a running pre-training serves labelled tasks.

`knn` and `linear` look at one vector a scan, and misjudge masked autoencoders, whose features are good and not
linearly separable (He et al. 2022, arXiv 2111.06377, section 4.3); `segmentation` looks at the feature maps, and
exists for them.
"""
