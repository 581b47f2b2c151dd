"""The smallest method that can be trained: it learns the mean b0 of slices. Run as a script it trains without anything
but torch, numpy and safetensors."""

import sys

import torch

from bids_dmrigen import methods
from bids_dmrigen.diffusion.training import Plan
from bids_dmrigen.simulate.examples import People, numbers_of_step

HEAVY = ("nibabel", "nilearn", "scipy", "nipype", "bids", "matplotlib", "pandas", "dipy", "ants")


class Mean:
    """One number, drawn towards the mean of the signals it is shown."""

    def network(self, size):
        net = torch.nn.Linear(1, 1)
        with torch.no_grad():
            net.weight.zero_()
            net.bias.fill_(5)
        return net

    def configuration(self, size):
        return {"size": size}

    def plan(self, size):
        return Plan(steps=1000, learning_rate=0.1, warmup=1, evaluate_every=10)

    def examples(self, source, size, batch, seed):
        def make(index):
            slices = source.slices(numbers_of_step(seed, index, source.device), batch, (16, 16))
            if isinstance(source, People):
                return slices.signal(torch.zeros(batch, 1), torch.zeros(batch, 1, 3))
            return slices.signal[:, :1]

        return make

    def loss(self, net, batch):
        return (net(batch.mean().reshape(1, 1)) - 1).square().mean()

    def held_out(self, source, size, seed):
        batch = self.examples(source, size, 4, seed)(0)

        @torch.no_grad()
        def score(net):
            return float(self.loss(net, batch))

        return score


if __name__ == "__main__":
    sys.modules |= dict.fromkeys(HEAVY)  # as if they were not installed
    from bids_dmrigen.cli.train import main

    methods.REGISTRY["mean"] = ("absent", "Absent")
    methods.load = lambda name: Mean()
    sys.exit(main())
