"""Networks that say the tensor at once: no noise and no time, on the same examples and in the same use as Diff-DTI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...diffusion.numerics import autocast
from ...dwi.series import Scan
from ...nets.direction_unet import dyadic_features
from ..adversarial import maker
from ..at_once import asked_once, n_parameters
from ..base import Generated, Request
from .examples import Batch
from .fields import DARKEST, DIFFUSIVITY
from .inputs import Condition, numbers_of, tensor_of
from .slices import SliceMaps, tensor_error
from .task import BVALS, LEAST, MOST, SCHEMES, MapsSpec

AROUND = 18  # channels of the condition that hold the tensors of a slice and its neighbours, the slice's at 1, 4, ...


class DirectMaps(SliceMaps):
    """A network that says the numbers of a tensor, as `Condition` takes them, without noise and time.

    Parameters
    ----------
    spec
        The specification.
    architecture
        () -> the network: condition -> output (S, 7, H, W).
    """

    def __init__(self, spec: MapsSpec, architecture: Callable[[], nn.Module]):
        self.spec, self._architecture = spec, architecture

    def network(self, size: str) -> nn.Module:
        """Return an untrained network, always the same."""
        return self.seeded(self._architecture, size)

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the range of the training data, and the number of the network's parameters."""
        return {"parameters": n_parameters(self.network(size)), "bvals": list(BVALS), "directions": [LEAST, MOST]}

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the error of the tensors that the network says; see `tensor_error`."""
        said, condition = ask(net, batch.condition), batch.condition
        with autocast(said.device, "fp32"):
            return tensor_error(condition.centre + condition.scale * said.float(), batch)

    def draw(
        self,
        net: nn.Module,
        condition: Condition,
        sampler: str,
        times: Sequence[int],
        noise: Callable[[int], Tensor],
        precision: str,
        mean: Tensor | None = None,
    ) -> Tensor:
        """Return what the network says of S slices, (S, 7, H, W); there is nothing to sample."""
        with autocast(condition.images.device, precision):
            return ask(net, condition).float()

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Make the maps of a scan with `net`, or with stored weights where `net` is None."""
        return super().generate(net, scan, asked_once(request))


class OfSlices(nn.Module):
    """A network of images as a network of a `Condition`; its numbers become images that are the same everywhere.

    Parameters
    ----------
    body
        (S, K, H, W) -> (S, 7, H, W).
    alone
        Whether the tensors of the slices above and below are left out.
    """

    def __init__(self, body: nn.Module, alone: bool = False):
        super().__init__()
        self.body, self.alone = body, alone

    def forward(self, condition: Condition) -> Tensor:
        """Return (S, 7, H, W) of the condition of S slices."""
        images = condition.images
        if self.alone:
            images = torch.cat([images[:, 1:AROUND:3], images[:, AROUND:]], dim=1)
        return self.body(torch.cat([images, everywhere(condition)], dim=1))


class SixImages(nn.Module):
    """DeepDTI's order of things: images along six fixed directions are corrected, then a tensor is fitted to them.

    Whatever the acquired directions, their ridge fit says the b0 and six images of `SCHEMES`; a network says what is to
    be added to them.

    Parameters
    ----------
    body
        (S, K, H, W) -> (S, 7, H, W): what is added to the b0 and the six images.
    """

    products: Tensor
    fit: Tensor

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        scheme = torch.as_tensor(np.asarray(SCHEMES[MOST]), dtype=torch.float32)
        self.register_buffer("products", dyadic_features(scheme), persistent=False)  # (6, 6)
        self.register_buffer("fit", torch.linalg.inv(dyadic_features(scheme)), persistent=False)

    def forward(self, condition: Condition) -> Tensor:
        """Return (S, 7, H, W) of the condition of S slices."""
        b = DIFFUSIVITY * condition.bvals[:, :1, None, None]
        adc = torch.einsum("nk,skhw->snhw", self.products, tensor_of(condition.centre))
        b0 = condition.acquired[:, :1].clamp_min(DARKEST)
        images = torch.cat([b0, (b0 * torch.exp((-b * adc).clamp_max(1))).clamp_min(DARKEST)], dim=1)
        added = self.body(torch.cat([images, condition.images, everywhere(condition)], dim=1))
        brighter = ((images + added).clamp_min(DARKEST) / images).log()
        tensor = torch.einsum("kn,snhw->skhw", self.fit, adc + (brighter[:, :1] - brighter[:, 1:]) / b)
        return (numbers_of(tensor) - condition.centre) / condition.scale


def everywhere(condition: Condition) -> Tensor:
    """Return the numbers of a condition as images (S, K, H, W)."""
    return condition.numbers[:, :, None, None].expand(-1, -1, *condition.images.shape[2:])


def ask(net: nn.Module, condition: Condition) -> Tensor:
    """Return what a network says of S slices, (S, 7, H, W), in units of the expected error."""
    said: Tensor = maker(net)(condition)
    return said
