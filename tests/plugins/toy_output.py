"""An output format in one file outside of the project: label maps as NumPy arrays, by `--format npy`."""

import numpy as np

from scanfoundry.finetune.predict.outputs import OutputFormat
from scanfoundry.finetune.task_parts import LABEL_MAP


def write(target, codes, origin):
    with target.open("wb") as stream:
        np.save(stream, origin.spec.labels.decode(codes))


PLUGINS = {"output": [OutputFormat("npy", LABEL_MAP, ".npy", write, title="NumPy")]}
