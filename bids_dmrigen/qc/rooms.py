"""What a benchmark asks of each room: how many directions are kept, and which score decides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """The question of a room, as `dmrigen benchmark` asks it.

    Parameters
    ----------
    question
        In words.
    keep
        Directions that are kept on every shell; 0 for the b0s alone.
    simulated, real
        Scores that decide, keys of `definitions.EVALUATION`: where the truth is known, and where it is not.
    """

    question: str
    keep: tuple[int, ...]
    simulated: str
    real: str


ROOMS = {
    "maps": Room("FA, MD and colour FA from six directions", (6,), "fa_psnr", "left_out_fa_psnr"),
    "directions": Room("images of directions that were not acquired", (12,), "dwi_psnr", "dwi_psnr"),
    "synthesis": Room("images of all directions from the b0", (0,), "dwi_psnr", "dwi_psnr"),
    "enhance": Room("a shell as a better scanner would show it", (12,), "fa_psnr", "left_out_fa_psnr"),
    "denoise": Room("a run without its noise", (12,), "fa_psnr", "left_out_fa_psnr"),
}
