"""Di-Fusion: denoise a run by a diffusion model trained on that run alone (Wu et al., ICLR 2025).

There are two variants. In `published`, as in the paper, the network sees x_t, made from a volume and its
neighbour, and returns the volume. In `extended`, the default, the network also sees the prediction of this volume
from all others, and corrects it. The result is then combined with the acquired volume, with optimal weights from
the noise level; the published fusion has the same aim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import Citation, Definition, Header, MethodPlan, Option
from .task import DenoiseSpec

VARIANTS = ("extended", "published")
STEPS = 800  # most steps of a training
MINUTES = Option(
    "difusion_minutes", "longest training on one run, minutes (default: 3)", 3.0, float, key="minutes",
    above=0, metavar="MIN",
)  # fmt: skip
TRAINING_STEPS = Option(
    "difusion_steps", f"most training steps on one run (default: {STEPS})", None, int, key="training_steps",
    least=1, metavar="N",
)  # fmt: skip
VARIANT = Option(
    "difusion_variant",
    "extended, or as published, which is weaker (default: extended)",
    "extended",
    key="variant",
    choices=VARIANTS,
)


class _Spec(DenoiseSpec):
    def plan(self, values: Mapping[str, Any], header: Header) -> MethodPlan:
        """Return the plan: the acquired table, and how long to train."""
        options = self.options_by_key(values)
        return MethodPlan(options, header.gradients, minutes=options.pop(MINUTES.key, None))


SPEC = _Spec(
    name="difusion",
    title="Di-Fusion",
    line="the run, denoised by a diffusion model that is trained on it alone",
    summary=(
        "denoises the diffusion-weighted series by a diffusion model that is trained on the run itself, "
        "each volume against a prediction from all the others"
    ),
    citation=Citation(
        key="wu2025difusion",
        text=(
            "Wu C, Kong D, Xu T, et al. (2025). Self-Supervised Diffusion MRI Denoising via "
            "Iterative and Stable Refinement. International Conference on Learning Representations. "
            "arXiv:2501.13514"
        ),
        bibtex=(
            "@inproceedings{wu2025difusion,\n"
            "  title = {Self-Supervised Diffusion {MRI} Denoising via Iterative and Stable Refinement},\n"
            "  author = {Wu, Chenxu and others},\n"
            "  booktitle = {International Conference on Learning Representations},\n"
            "  year = {2025},\n  eprint = {2501.13514},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    min_directions=6,
    good_directions=12,
    needs_weights=False,
    samplers={
        "paper": "run-walk, 76 evaluations of 4 flips",
        "fast": "two exact steps, one flip each",
    },
    options=(MINUTES, TRAINING_STEPS, VARIANT),
    denoised="The series was denoised with Di-Fusion, trained on the run itself [wu2025difusion].",
    definitions={
        "evaluations": Definition(
            "Network evaluations", "count", None, "evaluations of the network that the sampler used"
        ),
        "held_out_loss": Definition(
            "Held-out loss", "1", "lower",
            "loss of the network on parts of the run that it was not trained on, in the method's own scale: compares "
            "runs of one method only",
        ),
        "held_out_gain": Definition(
            "Held-out gain", "1", "higher",
            "share by which training lowered the held-out loss; 0 where the network learnt nothing and the result is "
            "the classical estimate",
        ),
        "own_direction_contrast": Definition(
            "Directions kept", "1", "higher",
            "regression of each denoised volume on its acquired volume (a) and on that of the nearest direction (n): "
            "a / (a + n), mean of the volumes; 1 where every direction is kept, 0.5 or less where it is smeared over "
            "its neighbours",
        ),
    },
)  # fmt: skip
