"""Two adversarial networks there and back, with which Diff-DTI is compared: CycleGAN (Zhu et al. 2017).

In its manner: one network makes good tensors of noisy ones, the other noisy ones of good ones; each has to undo the
other, and discriminators judge what they make. No good tensor is shown with its own noisy one. Here both networks are
U-Nets of slices of tensors; examples are those of all arms.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import Citation
from . import diffdti
from .task import LEARNT

if TYPE_CHECKING:
    from .cyclegan_model import CycleMaps

SPEC = replace(
    diffdti.SPEC,
    name="cyclegan",
    title="CycleGAN",
    line="the tensor and its maps from three to six directions by two adversarial networks there and back",
    summary=(
        "makes good diffusion tensors of noisy ones, which are fitted to a b0 and three to six directions, by two "
        "adversarial networks that undo each other"
    ),
    citation=Citation(
        key="zhu2017cyclegan",
        text=(
            "Zhu JY, Park T, Isola P, Efros AA (2017). Unpaired Image-to-Image Translation using Cycle-Consistent "
            "Adversarial Networks. ICCV 2017. arXiv:1703.10593"
        ),
        bibtex=(
            "@inproceedings{zhu2017cyclegan,\n"
            "  title = {Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks},\n"
            "  author = {Zhu, Jun-Yan and Park, Taesung and Isola, Phillip and Efros, Alexei A},\n"
            "  booktitle = {ICCV},\n  year = {2017},\n  eprint = {1703.10593},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    **LEARNT,
)


def build() -> CycleMaps:
    """Return the method."""
    from .cyclegan_model import CycleMaps

    return CycleMaps(SPEC)
