"""One thread: the machine that runs the suite is shared."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
