"""Backbones that pre-training and fine-tuning share, and released weights in and out.

`load` gives a pre-trained encoder by the name of an installed model, a run folder or a file. What a backbone offers
is in `protocol.py`, which backbones there are in `registry.py`; a model on disk is in `models/`, files that others
released are read in `foreign/`.
"""

from scanfoundry.backbones.pretrained import find, is_release, load, models_folder, read_about, read_release

__all__ = ["find", "is_release", "load", "models_folder", "read_about", "read_release"]
