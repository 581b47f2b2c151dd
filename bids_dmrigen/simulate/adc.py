"""The mean apparent diffusion coefficient of simulated subjects, in the template's space."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..dwi.adc import MeanOverBrains, apparent_diffusion
from ..dwi.gradients import B0_THRESHOLD_S_PER_MM2, GradientTable, even_directions
from .anatomy import deform
from .atlas import Atlas
from .individual import ALIGNED, Variation
from .signal import Tissue, simulate_signal

DIRECTIONS = 12  # the mean over twelve even directions is a third of the tensor's trace, to a percent
WRONG_BVALS = "b-values: expected increasing values above {threshold:g} s/mm², found {found}"
NO_SUBJECTS = "subjects: expected at least one, found {found}"


def mean_adc(
    atlas: Atlas,
    bvals: Sequence[float],
    n_subjects: int,
    n_directions: int = DIRECTIONS,
    variation: Variation = ALIGNED,
    tissue: Tissue | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return the mean ADC of simulated subjects who are aligned with the template.

    D(b) = mean of ln(S0 / S(b, g)) / b over subjects and directions g, without noise: the ADC atlas of Phy-Diff
    (arXiv 2406.03002, Eq. 4; the sum in that equation is N times the average that the text describes).

    Parameters
    ----------
    atlas
        Atlas in the template's space; the result is on its grid.
    bvals
        (K,) s/mm², increasing.
    n_subjects
        Number of subjects; their seeds are 0 to n - 1.
    n_directions
        Directions per b-value, even over the sphere.
    variation
        How subjects differ from the atlas; by default as after registration.
    tissue
        Microstructure of all subjects; None for a random one for each subject.
    progress
        Called with the number of subjects done.

    Returns
    -------
    numpy.ndarray
        (X, Y, Z, K) float32, mm²/s; 0 where fewer than half of the subjects have brain.

    Raises
    ------
    ValueError
        Where the b-values do not increase or count as b0, or there is no subject.
    """
    steps = np.diff(np.asarray(bvals, dtype=np.float64), prepend=B0_THRESHOLD_S_PER_MM2)
    if not len(bvals) or (steps <= 0).any():
        raise ValueError(WRONG_BVALS.format(threshold=B0_THRESHOLD_S_PER_MM2, found=[float(b) for b in bvals]))
    if n_subjects < 1:
        raise ValueError(NO_SUBJECTS.format(found=n_subjects))
    directions = even_directions(n_directions)
    world = np.concatenate([np.zeros((1, 3)), *[directions] * len(bvals)])
    table = GradientTable.from_world(np.r_[0.0, np.repeat(bvals, n_directions)], world, atlas.affine)
    mean = MeanOverBrains()
    for seed in range(n_subjects):
        subject = deform(atlas, seed, variation)
        signal = simulate_signal(subject, table, atlas.affine, tissue or Tissue.random(seed)).cpu().numpy()
        brain = subject.brain.cpu().numpy()
        mean.add(_adc_of_shells(signal, brain, bvals), brain)
        if progress:
            progress(seed + 1)
    return mean.mean()


def _adc_of_shells(signal: np.ndarray, brain: np.ndarray, bvals: Sequence[float]) -> np.ndarray:
    """Return (X, Y, Z, K) ADC of a b0 followed by K shells of as many directions each; 0 outside the brain."""
    n_directions = (signal.shape[-1] - 1) // len(bvals)
    adc = np.zeros((*brain.shape, len(bvals)), np.float32)
    for k, b in enumerate(bvals):
        shell = slice(1 + k * n_directions, 1 + (k + 1) * n_directions)
        adc[brain, k] = apparent_diffusion(signal[brain, 0], signal[brain, shell], b)
    return adc
