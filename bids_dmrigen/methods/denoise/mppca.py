"""MP-PCA, with which Di-Fusion is compared: noise is what random matrices look like."""

from __future__ import annotations

from ..spec import Citation
from .task import DenoiseSpec
from .untrained import UntrainedDenoiser

SPEC = DenoiseSpec(
    name="mppca",
    title="MP-PCA",
    line="the run, denoised by principal components of patches (nothing is learnt)",
    summary="denoises the series by principal components of patches, less those that noise alone explains",
    citation=Citation(
        key="veraart2016",
        text=(
            "Veraart J, Novikov DS, Christiaens D, Ades-Aron B, Sijbers J, Fieremans E (2016). Denoising of diffusion "
            "MRI using random matrix theory. NeuroImage 142:394-406. doi:10.1016/j.neuroimage.2016.08.016"
        ),
        bibtex=(
            "@article{veraart2016,\n"
            "  title = {Denoising of diffusion {MRI} using random matrix theory},\n"
            "  author = {Veraart, Jelle and Novikov, Dmitry S and Christiaens, Daan and Ades-Aron, Benjamin and "
            "Sijbers, Jan and Fieremans, Els},\n  journal = {NeuroImage},\n  year = {2016},\n  volume = {142},\n"
            "  pages = {394--406},\n  doi = {10.1016/j.neuroimage.2016.08.016}\n}"
        ),
    ),
    min_directions=4,
    good_directions=12,
    needs_weights=False,
    samplers={"fast": "none: principal components", "paper": "none: principal components"},
    sizes=("small",),
    draws=False,
    denoises=False,  # `--denoise mppca` is a step of its own
)


def build() -> UntrainedDenoiser:
    """Return the method."""
    from .classical import denoise

    return UntrainedDenoiser(SPEC, lambda scan: denoise(scan, "mppca")[0])
