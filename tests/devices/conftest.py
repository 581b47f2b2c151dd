"""The strict device, in the place of a GPU."""

import pytest
import torch

from . import strict as strict_device


@pytest.fixture
def strict(monkeypatch) -> torch.device:
    """The device with CUDA's rules; generators can be made on it."""
    monkeypatch.setattr(torch, "Generator", strict_device.generator)
    with strict_device.OwnGenerators():
        yield strict_device.DEVICE
    strict_device.raise_refused()
