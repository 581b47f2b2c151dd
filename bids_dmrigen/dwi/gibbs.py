"""Gibbs-ringing removal by local sub-voxel shifts (Kellner et al. 2016), many slices at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

SHIFTS_VOXELS = torch.linspace(0.02, 0.9, 45)
N_POINTS = 3  # neighbours on either side over which the total variation is summed
# Voxels worked on at once. On a CPU each array stays in the cache and below the size from which torch splits
# one operation over threads: whole chunks in parallel are several times faster, above all on a busy machine.
CHUNK_ELEMENTS = {"cpu": 2**15 - 1, "cuda": 2**24}

BAD_SLICE_AXIS = "slice_axis is {axis}; expected 0, 1 or 2, the axis along which slices were acquired"
TOO_SMALL = "slices of {shape} voxels are too small for Gibbs-ringing removal; at least 8 x 8 is needed"


def remove_gibbs(data: np.ndarray, slice_axis: int = 2, device: str | torch.device = "cpu") -> np.ndarray:
    """Return a series with truncation ringing removed from every slice of every volume.

    Truncated k-space makes an edge ring, and some sub-voxel shift samples the ringing at its zeros. So each
    row is shifted by +-0.02 ... 0.9 voxel, every voxel keeps on either side the shift with the least total
    variation among its neighbours, and the two are interpolated back to the grid. Rows and columns are done
    in turn and merged in k-space by the weights (1 + cos k_y) / (2 + cos k_x + cos k_y) and their complement,
    so that neither direction is smoothed by the other.

    Parameters
    ----------
    data
        (X, Y, Z) or (X, Y, Z, N), not negative, before any interpolation or other processing. k-space must be
        complete: partial Fourier or zero-filled acquisitions ring with another period.
    slice_axis
        The axis (0, 1, 2) along which the 2-D slices were acquired.
    device
        Where it runs.

    Returns
    -------
    np.ndarray
        float32, same shape. Slices that are constant (masked background) come back unchanged. Where two
        shifts are equally good to single precision, either may be taken: a few voxels in a million.

    Raises
    ------
    ValueError
        Where there is no such axis, or a slice is smaller than 8 x 8 voxels.
    """
    if slice_axis not in (0, 1, 2):
        raise ValueError(BAD_SLICE_AXIS.format(axis=slice_axis))
    # Volumes and slices lead, in that order: (N, slices, rows, columns).
    volumes = np.asarray(data, dtype=np.float32).reshape(*data.shape[:3], -1)
    volumes = np.moveaxis(volumes, (3, slice_axis), (0, 1))
    shape = volumes.shape[2:]
    if min(shape) < 8:
        raise ValueError(TOO_SMALL.format(shape=" x ".join(map(str, shape))))
    slices = torch.from_numpy(np.array(volumes, order="C")).view(-1, *shape)  # a copy
    device = torch.device(device)
    row_weight = _row_weights(*shape).to(device)

    def restore(chosen: torch.Tensor) -> None:
        slices[chosen] = _without_ringing(slices[chosen].to(device), row_weight).cpu()

    largest = (shape[0] + 2 * N_POINTS) * (shape[1] + 2 * N_POINTS)
    step = max(1, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"]) // largest)
    todo = torch.nonzero(slices.amax(dim=(1, 2)) > slices.amin(dim=(1, 2)))[:, 0]
    # Each worker gets the next chunk; within it, operations run on that thread alone.
    n_threads = torch.get_num_threads()
    n_workers = n_threads if device.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(restore, todo.split(step)))  # a list, so that an error is raised here
    finally:
        torch.set_num_threads(n_threads)
    restored = np.moveaxis(slices.view(volumes.shape).numpy(), (0, 1), (3, slice_axis))
    return np.ascontiguousarray(restored).reshape(data.shape)


def _without_ringing(images: torch.Tensor, row_weight: torch.Tensor) -> torch.Tensor:
    """Return slices (K, rows, columns) treated along both directions and merged by the weights in k-space."""
    rows = _shift_away(images)
    columns = torch.fft.fft2(_shift_away(images.mT.contiguous()).mT)
    # G_c F(c) + G_r F(r) with G_c = 1 - G_r
    merged = columns + (torch.fft.fft2(rows) - columns) * row_weight
    restored: torch.Tensor = torch.fft.ifft2(merged).abs()
    return restored


def _shift_away(images: torch.Tensor) -> torch.Tensor:
    """Return (K, A, B) images without ringing along their last axis."""
    length = images.shape[-1]
    spectrum = torch.fft.rfft(images)
    frequency = torch.arange(spectrum.shape[-1], device=images.device) / length  # cycles per voxel
    # For an even length the highest frequency has no partner: shifting it leaves an imaginary part,
    # alternating in sign and of equal size along the row, that enters the magnitude.
    unpaired = (spectrum[..., -1:].real / length).square() if length % 2 == 0 else 0 * images[..., :1]
    search = _Search(images)
    sides = []
    for sign in (1, -1):
        search.restart()
        for step in SHIFTS_VOXELS.tolist():
            phase = torch.polar(torch.ones_like(frequency), 2 * torch.pi * sign * step * frequency)
            if length % 2 == 0:
                phase.imag[-1] = 0
            power = torch.fft.irfft(spectrum * phase, n=length).square_()
            search.offer(power.add_(unpaired, alpha=np.sin(np.pi * step) ** 2).sqrt_(), step)
        sides.append((search.value.clone(), search.shift.clone()))
    (right, right_shift), (left, left_shift) = sides
    # Linear interpolation between the two shifted samples, back to the voxel centre.
    weight = left_shift / (right_shift + left_shift).clamp_(min=SHIFTS_VOXELS[0].item())
    return torch.lerp(left, right, weight)


class _Search:
    """The shift of least total variation around every voxel of (K, A, B) images, in buffers that are reused.

    Comparisons write 0 or 1 into float buffers that weight the update: on a CPU that is far faster than
    boolean masks and `torch.where`.
    """

    def __init__(self, images: torch.Tensor):
        self.images = images
        size, length = images.shape[:-1], images.shape[-1]
        self.padded = images.new_empty(*size, length + 2 * N_POINTS)
        self.steps = images.new_empty(*size, length + 2 * N_POINTS - 1)
        self.window = images.new_empty(*size, length + N_POINTS)
        self.candidate, self.better = torch.empty_like(images), torch.empty_like(images)
        self.unshifted = self._least_variation(images).clone()

    def restart(self) -> None:
        """Forget all shifts; go back to the unshifted images."""
        self.least, self.value, self.shift = self.unshifted.clone(), self.images.clone(), 0 * self.images

    def offer(self, moved: torch.Tensor, step: float) -> None:
        """Take the images `moved` by `step` voxels wherever their total variation is less than any before."""
        candidate = self._least_variation(moved)
        torch.lt(candidate, self.least, out=self.better)
        torch.minimum(self.least, candidate, out=self.least)
        self.value.lerp_(moved, self.better)
        # Shifts grow from step to step, so the latest improvement is the largest.
        torch.maximum(self.shift, self.better.mul_(step), out=self.shift)

    def _least_variation(self, images: torch.Tensor) -> torch.Tensor:
        """Return the smaller of the total variations over `N_POINTS` steps to the right and to the left."""
        padded, steps, window, length = self.padded, self.steps, self.window, images.shape[-1]
        padded[..., N_POINTS:-N_POINTS] = images
        padded[..., :N_POINTS], padded[..., -N_POINTS:] = images[..., -N_POINTS:], images[..., :N_POINTS]
        torch.sub(padded[..., 1:], padded[..., :-1], out=steps).abs_()
        torch.add(steps[..., : length + N_POINTS], steps[..., 1 : length + N_POINTS + 1], out=window)
        for k in range(2, N_POINTS):
            window += steps[..., k : length + N_POINTS + k]
        return torch.minimum(window[..., N_POINTS:], window[..., :length], out=self.candidate)


def _row_weights(n_rows: int, n_columns: int) -> torch.Tensor:
    """Return the (A, B) k-space weight of the image corrected along its rows; the other has one minus it."""
    row, column = (1 + torch.cos(torch.linspace(-torch.pi, torch.pi, n)) for n in (n_rows, n_columns))
    row, column = row.clamp(min=0)[:, None], column.clamp(min=0)[None]
    total = row + column
    weight = torch.where(total > 1e-6, row / total.clamp(min=1e-6), 0.5)
    shifted: torch.Tensor = torch.fft.ifftshift(weight)
    return shifted
