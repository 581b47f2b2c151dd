"""A method in one file, as a new developer would write one: it has an option, a network and an additional map.

`tests/methods/test_new_arm.py` takes it through everything, with a row in the registry and nothing else.
"""

import numpy as np
import torch

from bids_dmrigen.diffusion.training import Plan
from bids_dmrigen.methods.base import Generated, TrainedAtOnce
from bids_dmrigen.methods.making import Making
from bids_dmrigen.methods.spec import Citation, Definition, ExtraMap, MethodSpec, Option
from bids_dmrigen.simulate.examples import numbers_of_step

STRENGTH = Option(
    "toy_strength",
    "share of the mean over directions that is mixed in",
    0.5,
    float,
    key="strength",
    above=0,
    metavar="S",
)
SPEC = MethodSpec(
    name="toy",
    title="Toy mixing",
    line="every volume mixed with the mean of its shell",
    summary="mixes every diffusion-weighted volume with the mean of its shell by a learnt share",
    citation=Citation("toy2026", "Nobody (2026). A toy. Journal of Tests.", "@misc{toy2026,\n  title = {A toy}\n}"),
    min_directions=2,
    good_directions=3,
    needs_weights=True,
    samplers={"paper": "none: a mean", "fast": "none: a mean"},
    options=(STRENGTH,),
    draws=False,
    extra_maps=(ExtraMap("mixing", "Mixing", "Share of the mean that was mixed in"),),
    definitions={"own_share": Definition("Learnt share", "1", None, "the number that the network learnt")},
)


class Toy(TrainedAtOnce):
    """One learnt number, times the strength that is asked for."""

    spec = SPEC

    def network(self, size):
        net = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(net.weight)
        return net

    def configuration(self, size):
        return {"size": size}

    def training_plan(self, size):
        return Plan(steps=40, learning_rate=0.05, warmup=1, evaluate_every=10)

    def examples(self, source, size, batch, seed):
        def make(index):
            slices = source.slices(numbers_of_step(seed, index, source.device), batch, (16, 16))
            return slices.mask().float().mean(dim=(1, 2))[:, None]

        return make

    def loss(self, net, batch):
        return (net(torch.ones_like(batch)) - 0.4).square().mean()

    def generate(self, net, scan, request):
        making = Making(self, net, request, (1, 1, 1))
        share = float(making.net.weight.detach()) * request.options.get("strength", STRENGTH.default)
        data = np.array(scan.data, np.float32)
        kept = scan.gradients.is_b0
        for _, volumes in scan.gradients.shells():
            data[..., volumes] = (1 - share) * data[..., volumes] + share * data[..., volumes].mean(axis=3)[..., None]
        extra = {"mixing": np.where(scan.mask, share, 0).astype(np.float32)}
        warnings = tuple(self.spec.check(scan))
        return Generated(
            data, None, scan.gradients, (), kept, making.record(), {"own_share": share}, warnings, extra=extra
        )


def build():
    """Return the method."""
    return Toy()
