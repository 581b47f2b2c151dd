"""Diffusion of an autoencoder's latents, with which Phy-Diff is compared (Rombach et al. 2022).

In their manner: an autoencoder is trained first, then a U-Net that takes noise from its latents. Here latents are four
times coarser than images, the condition is that of all arms of the room, and the network predicts the latents.
"""

from __future__ import annotations

from dataclasses import replace

from ..spec import Citation
from . import phydiff

SPEC = replace(
    phydiff.SPEC,
    name="latentdiffusion",
    title="Latent diffusion",
    line="images of any b-value and direction from the b0 by diffusion of an autoencoder's latents",
    summary=(
        "makes diffusion-weighted images of any b-value and direction from the b0 by a diffusion model of the latents "
        "of an autoencoder"
    ),
    citation=Citation(
        key="rombach2022latent",
        text=(
            "Rombach R, Blattmann A, Lorenz D, Esser P, Ommer B (2022). High-Resolution Image Synthesis with Latent "
            "Diffusion Models. CVPR 2022. arXiv:2112.10752"
        ),
        bibtex=(
            "@inproceedings{rombach2022latent,\n"
            "  title = {High-Resolution Image Synthesis with Latent Diffusion Models},\n"
            "  author = {Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and Ommer, "
            'Bj\\"orn},\n  booktitle = {CVPR},\n  year = {2022},\n  eprint = {2112.10752},\n'
            "  archivePrefix = {arXiv}\n}"
        ),
    ),
    population=("adc",),
    sizes=("small",),
)
