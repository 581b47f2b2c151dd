"""A conditional GAN, with which QID² is compared: pix2pix (Isola et al. 2017).

In its manner: a U-Net translates the nearest images, a discriminator of patches judges the result. Direction and
b-value are images that are the same everywhere. Here the error is squared, and the input is that of all arms.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import DIRECT, Citation
from . import qid2

if TYPE_CHECKING:
    from torch import nn

    from .direct import AdversarialDirections

SPEC = replace(
    qid2.SPEC,
    name="cgan",
    title="Conditional GAN",
    line="more directions by a conditional GAN that sees the nearest acquired ones",
    summary="adds diffusion directions to each shell by a conditional generative adversarial network",
    citation=Citation(
        key="isola2017pix2pix",
        text=(
            "Isola P, Zhu JY, Zhou T, Efros AA (2017). Image-to-Image Translation with Conditional Adversarial "
            "Networks. CVPR 2017. arXiv:1611.07004"
        ),
        bibtex=(
            "@inproceedings{isola2017pix2pix,\n"
            "  title = {Image-to-Image Translation with Conditional Adversarial Networks},\n"
            "  author = {Isola, Phillip and Zhu, Jun-Yan and Zhou, Tinghui and Efros, Alexei A},\n"
            "  booktitle = {CVPR},\n  year = {2017},\n  eprint = {1611.07004},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    **DIRECT,
)


def build() -> AdversarialDirections:
    """Return the method, with the default number of references."""
    from ...nets.compared import PlainUNet
    from ..at_once import Translation
    from .direct import AdversarialDirections, adversaries, told, told_to
    from .inputs import EXTRA

    def network(references: int) -> nn.Module:
        body = PlainUNet(references + EXTRA + told_to(references), 1)
        return adversaries(Translation(body, told), references)

    return AdversarialDirections(SPEC, network)
