"""The smallest method that can be trained: it learns the mean b0 of slices. Run as a script it trains without anything
but torch, numpy and safetensors."""

import sys

import torch

from bids_dmrigen import methods
from bids_dmrigen.diffusion.training import Plan
from bids_dmrigen.methods.base import TrainedAtOnce
from bids_dmrigen.methods.spec import Citation, MethodSpec
from bids_dmrigen.simulate.examples import SimulatedSubjects, numbers_of_step

SPEC = MethodSpec("mean", "Mean", "the mean b0", "learns the mean b0", Citation("mean", "", ""), 0, 0, True)
HEAVY = ("nibabel", "nilearn", "scipy", "nipype", "bids", "matplotlib", "pandas", "dipy", "ants")


class Mean(TrainedAtOnce):
    """One number, drawn towards the mean of the signals it is shown."""

    spec = SPEC

    def network(self, size):
        net = torch.nn.Linear(1, 1)
        with torch.no_grad():
            net.weight.zero_()
            net.bias.fill_(5)
        return net

    def configuration(self, size):
        return {"size": size}

    def generate(self, net, scan, request):
        raise NotImplementedError

    def training_plan(self, size):
        return Plan(steps=1000, learning_rate=0.1, warmup=1, evaluate_every=10)

    def examples(self, source, size, batch, seed):
        def make(index):
            slices = source.slices(numbers_of_step(seed, index, source.device), batch, (16, 16))
            if isinstance(source, SimulatedSubjects):
                return slices.signal(torch.zeros(batch, 1), torch.zeros(batch, 1, 3))
            return slices.signal[:, :1]

        return make

    def loss(self, net, batch):
        return (net(batch.mean().reshape(1, 1)) - 1).square().mean()

    def held_out(self, source, size, seed, batches=1, batch=4):
        batch = self.examples(source, size, batch, seed)(0)

        @torch.no_grad()
        def score(net):
            return float(self.loss(net, batch))

        return score


def build():
    return Mean()


if __name__ == "__main__":
    sys.modules |= dict.fromkeys(HEAVY)  # as if they were not installed
    from bids_dmrigen.cli.train import main

    methods.REGISTRY["mean"] = "tests.cli.trainable"
    sys.exit(main())
