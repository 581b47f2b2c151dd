"""The simulated anatomy: tissue fractions and up to three fibre directions per voxel."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

COMMISSURAL, PROJECTION, ASSOCIATION = range(3)
SAMPLE_SPACING_MM = 3.0  # between samples along an analytic bundle
RADIAL_DENSITY = 0.12  # density of fibres that run straight to the cortex; that of the core of a bundle is 1
SCATTERED_DENSITY = 0.05  # density of white matter without a direction
ISOTROPIC_STRENGTH = 0.10  # where the strengths of all fibres sum to this, fibres fill half of a voxel
SHAPE_MISMATCH = "atlas {name}: expected shape {expected}, found {found}"

# Centre lines of the great bundles, MNI mm, right hemisphere (the left one is its mirror image):
# (system, radius in mm, points). Positions agree with anatomical atlases to a few millimetres.
# fmt: off
_STEM = [(5, -32, -66), (5, -30, -48), (7, -24, -32), (12, -20, -16), (19, -17, -4), (24, -18, 8),
         (26, -20, 20)]
_BUNDLES: list[tuple[int, float, list[tuple[float, float, float]]]] = [
    # forceps minor, forceps major, tapetum, anterior commissure, middle cerebellar peduncle
    (COMMISSURAL, 5, [(-12, 36, 2), (0, 29, 3), (12, 36, 2), (18, 46, 0), (18, 62, -2)]),
    (COMMISSURAL, 5, [(-12, 36, 10), (0, 31, 9), (12, 36, 10), (18, 46, 12), (18, 62, 14)]),
    (COMMISSURAL, 5, [(-12, 33, 16), (0, 27, 15), (12, 33, 17), (18, 42, 24), (20, 52, 32)]),
    (COMMISSURAL, 5, [(-14, -44, 16), (0, -38, 13), (14, -44, 17), (24, -58, 17), (22, -76, 14),
         (14, -92, 10)]),
    (COMMISSURAL, 4, [(-14, -40, 22), (0, -35, 19), (16, -40, 24), (30, -44, 16), (38, -40, -4),
         (44, -34, -12)]),
    (COMMISSURAL, 3, [(-15, 3, -6), (0, 2, -4), (15, 3, -6), (28, 0, -11), (40, -6, -20)]),
    (COMMISSURAL, 6, [(-14, -27, -33), (0, -22, -33), (14, -27, -33), (24, -40, -34), (26, -58, -37),
         (22, -70, -40)]),
    # corticospinal tract, fanning out above the internal capsule
    (PROJECTION, 4.5, [*_STEM, (23, -25, 45), (8, -28, 70)]),
    (PROJECTION, 4.5, [*_STEM, (28, -20, 42), (26, -20, 64)]),
    (PROJECTION, 4.5, [*_STEM, (34, -14, 38), (46, -8, 48)]),
    (PROJECTION, 4.5, [*_STEM, (26, -32, 45), (22, -42, 68)]),
    (PROJECTION, 4.5, [*_STEM, (25, -4, 42), (20, 4, 62)]),
    # anterior limb and thalamic radiations: anterior, superior, parietal; optic radiation
    (PROJECTION, 4.5, [(8, -12, 6), (13, -2, 6), (18, 8, 6), (21, 20, 9), (22, 36, 13), (20, 56, 14)]),
    (PROJECTION, 4.5, [(14, 0, 8), (20, 12, 14), (24, 22, 26), (26, 34, 38)]),
    (PROJECTION, 4.5, [(12, -18, 8), (19, -15, 15), (26, -12, 28), (24, -6, 48), (18, -4, 66)]),
    (PROJECTION, 4.5, [(17, -24, 9), (26, -34, 22), (26, -46, 38), (22, -60, 58)]),
    (PROJECTION, 4.5, [(20, -26, 0), (30, -28, -2), (37, -40, 0), (34, -58, 5), (24, -76, 7),
         (10, -92, 5)]),
    # superior cerebellar peduncle
    (PROJECTION, 3, [(4, -24, -8), (5, -34, -18), (8, -46, -26), (16, -56, -34)]),
    # superior longitudinal fasciculus II and III, arcuate fasciculus
    (ASSOCIATION, 5, [(32, 36, 24), (36, 14, 29), (37, -4, 31), (37, -22, 33), (36, -40, 35),
         (36, -58, 36)]),
    (ASSOCIATION, 4, [(46, 16, 14), (43, 0, 23), (44, -16, 27), (48, -32, 28)]),
    (ASSOCIATION, 4.5, [(44, 12, 18), (39, -8, 27), (37, -26, 29), (38, -40, 24), (44, -46, 11),
         (50, -36, -4), (52, -20, -14)]),
    # inferior longitudinal, inferior fronto-occipital, uncinate
    (ASSOCIATION, 4.5, [(18, -92, -4), (32, -74, -6), (42, -54, -8), (44, -34, -14), (42, -14, -23),
         (36, 4, -32)]),
    (ASSOCIATION, 4, [(14, -92, 2), (28, -74, 4), (38, -50, 3), (37, -30, -2), (35, -12, -6),
         (31, 4, -8), (28, 18, -3), (25, 36, 4), (20, 54, 4)]),
    (ASSOCIATION, 4, [(37, 2, -34), (35, 3, -20), (32, 10, -12), (25, 22, -10), (18, 40, -13)]),
    # cingulum: dorsal and temporal; fornix; frontal aslant; vertical occipital
    (ASSOCIATION, 3.2, [(6, 40, 0), (7, 38, 12), (8, 28, 26), (9, 10, 34), (9, -10, 38), (9, -28, 38),
         (9, -42, 32), (11, -50, 20)]),
    (ASSOCIATION, 3, [(12, -48, 13), (18, -42, 1), (24, -32, -10), (26, -14, -23)]),
    (ASSOCIATION, 2.5, [(2, 0, -4), (2, 2, 11), (2, -10, 17), (5, -25, 17), (14, -35, 10),
         (24, -32, -4), (28, -18, -14)]),
    (ASSOCIATION, 4, [(12, 14, 60), (26, 14, 42), (36, 14, 28), (48, 14, 12)]),
    (ASSOCIATION, 4, [(32, -72, -14), (35, -74, 4), (30, -74, 24)]),
]
# fmt: on
# Mid-sagittal arch of the corpus callosum: y and z of its centre, mm.
_ARCH_Y = np.array([-32.0, -20, -5, 10, 18, 25])
_ARCH_Z = np.array([21.0, 25, 27, 25, 21, 17])


@dataclass(frozen=True, eq=False)
class Atlas:
    """An anatomy on a grid, ready to be simulated. All arrays are float32 tensors on one device.

    Parameters
    ----------
    fractions
        (3, X, Y, Z) volume fractions of white matter, grey matter and CSF in [0, 1]; they sum to 1 in
        the brain and to 0 outside.
    directions
        (3, 3, X, Y, Z): three fibre populations, each a unit vector in world RAS+ (or zero).
    weights
        (3, X, Y, Z) shares of the tissue that follow each population; they sum to at most 1, and the rest
        of the tissue has no direction.
    t1w
        (X, Y, Z) T1-weighted intensity in [0, 1].
    brain
        (X, Y, Z) bool.
    affine
        (4, 4) voxel indices to world RAS+, mm.
    texture
        (3, X, Y, Z) logarithms of local factors on the diffusivities, the orientation dispersion and the
        b0 signal; zeros by default.
    """

    fractions: torch.Tensor
    directions: torch.Tensor
    weights: torch.Tensor
    t1w: torch.Tensor
    brain: torch.Tensor
    affine: np.ndarray
    texture: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self):
        shape = tuple(self.fractions.shape[1:])
        if not self.texture.numel():
            object.__setattr__(self, "texture", torch.zeros_like(self.fractions))
        leading = {
            "fractions": (3,),
            "directions": (3, 3),
            "weights": (3,),
            "t1w": (),
            "brain": (),
            "texture": (3,),
        }
        for name, lead in leading.items():
            stored_shape = tuple(getattr(self, name).shape)
            if stored_shape != lead + shape:
                raise ValueError(SHAPE_MISMATCH.format(name=name, expected=lead + shape, found=stored_shape))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Grid size (X, Y, Z)."""
        x, y, z = self.brain.shape
        return x, y, z

    def to(self, device: torch.device | str) -> Atlas:
        """Return the atlas on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "affine"}
        return replace(self, **moved)


def procedural_atlas(t1w, white, grey, brain, affine) -> Atlas:
    """Return an atlas whose fibre directions come from analytic bundles drawn in MNI space.

    Each of the three fibre populations is one system: commissural, projection, association. Within a
    system, the bundles are averaged as dyadic products with the weights exp(-distance² / 2 radius²), so the
    result is smooth and has no sign. Where no bundle passes, fibres run straight to the cortex.

    Parameters
    ----------
    t1w, white, grey
        (X, Y, Z) template T1-weighted intensity in [0, 1] and tissue probabilities in [0, 1]. The rest
        of the brain is CSF.
    brain
        (X, Y, Z) mask.
    affine
        (4, 4) voxel indices to MNI RAS+, mm.

    Returns
    -------
    Atlas
        On the given grid, on the CPU.
    """
    brain, fractions = _fractions(white, grey, brain)

    inside = brain.nonzero()  # (V, 3)
    matrix = torch.as_tensor(np.asarray(affine), dtype=torch.float32)
    world = inside.float() @ matrix[:3, :3].T + matrix[:3, 3]
    dyads, density = _bundle_dyads(world)
    radial = _radial_dyads(fractions[0], matrix)[:, brain]  # (6, V)
    dyads[PROJECTION] += RADIAL_DENSITY * radial.T
    density[PROJECTION] += RADIAL_DENSITY
    shares = density**1.5
    shares = shares / (shares.sum(dim=0) + SCATTERED_DENSITY)

    directions = torch.zeros((3, 3, *brain.shape))
    weights = torch.zeros((3, *brain.shape))
    directions[:, :, brain] = principal_directions(dyads.transpose(1, 2))
    weights[:, brain] = shares
    t1w = torch.as_tensor(np.asarray(t1w, dtype=np.float32)).clamp(0, 1)
    return Atlas(fractions, directions, weights, t1w, brain, np.array(affine, dtype=np.float64))


def _fractions(white, grey, brain) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mask (X, Y, Z) and fractions (3, X, Y, Z) of white matter, grey matter and CSF."""
    brain = torch.as_tensor(np.asarray(brain) > 0)
    white = torch.as_tensor(np.asarray(white, dtype=np.float32)).clamp(0, 1) * brain
    grey = torch.as_tensor(np.asarray(grey, dtype=np.float32)).clamp(0, 1) * brain
    total = (white + grey).clamp(min=1)  # probabilities may overshoot one by rounding
    white, grey = white / total, grey / total
    return brain, torch.stack([white, grey, (brain.float() - white - grey).clamp(0, 1)])


def fibre_atlas(t1w, white, grey, brain, directions, strengths, affine) -> Atlas:
    """Return an atlas whose fibre directions were measured.

    Parameters
    ----------
    t1w, white, grey
        (X, Y, Z) T1-weighted intensity in [0, 1] and tissue probabilities; the rest of the brain is CSF.
    brain
        (X, Y, Z) mask.
    directions
        (3, 3, X, Y, Z) three fibre directions in world RAS+, unit or zero.
    strengths
        (3, X, Y, Z) strengths of the fibres: quantitative anisotropy, about 0.3 in white matter.
    affine
        (4, 4) voxel indices to world RAS+, mm.

    Returns
    -------
    Atlas
        On the given grid, on the CPU. The shares of all fibres sum to S² / (S² + 0.1²), where S is the sum of
        their strengths.
    """
    t1w, directions, strengths = (
        torch.as_tensor(np.asarray(a, dtype=np.float32)) for a in (t1w, directions, strengths)
    )
    brain, fractions = _fractions(white, grey, brain)
    directions = unit(directions * brain)
    strengths = strengths * (directions != 0).any(dim=1)
    together = strengths.sum(dim=0)
    weights = strengths * together / (together**2 + ISOTROPIC_STRENGTH**2)
    return Atlas(fractions, directions, weights, t1w.clamp(0, 1), brain, np.array(affine, dtype=np.float64))


def dyadic(vectors: torch.Tensor) -> torch.Tensor:
    """Return the six distinct entries xx, yy, zz, xy, xz, yz of v vᵀ, (K, 3, *) -> (K, 6, *)."""
    x, y, z = vectors.unbind(dim=1)
    return torch.stack([x * x, y * y, z * z, x * y, x * z, y * z], dim=1)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Return (K, 3, *) vectors scaled to length one along axis 1; zero vectors stay zero."""
    x, y, z = vectors.unbind(dim=1)  # many times faster than a norm over a short axis
    return vectors / (x * x + y * y + z * z).sqrt().clamp(min=1e-12)[:, None]


def principal_directions(dyads: torch.Tensor) -> torch.Tensor:
    """Return the unit principal eigenvectors (K, 3, V) of sums of dyadic products (K, 6, V).

    The matrix is squared again and again; then its largest column is the eigenvector. For millions of 3 x 3
    matrices this is many times faster than an eigendecomposition. Zero matrices give zero vectors.
    """
    scale = dyads[:, :3].sum(dim=1, keepdim=True)
    xx, yy, zz, xy, xz, yz = (dyads / scale.clamp(min=1e-12)).unbind(dim=1)
    for _ in range(6):  # the 64th power
        xx, yy, zz, xy, xz, yz = (
            xx * xx + xy * xy + xz * xz,
            xy * xy + yy * yy + yz * yz,
            xz * xz + yz * yz + zz * zz,
            xx * xy + xy * yy + xz * yz,
            xx * xz + xy * yz + xz * zz,
            xy * xz + yy * yz + yz * zz,
        )
        trace = (xx + yy + zz).clamp(min=1e-12)
        xx, yy, zz, xy, xz, yz = (entry / trace for entry in (xx, yy, zz, xy, xz, yz))
    columns = torch.stack([torch.stack([xx, xy, xz]), torch.stack([xy, yy, yz]), torch.stack([xz, yz, zz])])
    largest = torch.stack([xx, yy, zz]).argmax(dim=0)  # (K, V)
    vector = columns.gather(0, largest[None, None].expand(1, 3, *largest.shape))[0]  # (3, K, V)
    return unit(vector.transpose(0, 1)) * (scale > 1e-12)


def _callosal_fans() -> list[tuple[int, float, list[tuple[float, float, float]]]]:
    """Return the body of the corpus callosum: from its arch up to the vertex and out sideways."""
    fans: list[tuple[int, float, list[tuple[float, float, float]]]] = []
    for y in np.linspace(_ARCH_Y[0], _ARCH_Y[-1], 9):
        z = float(np.interp(y, _ARCH_Y, _ARCH_Z))
        middle = [(-10, y, z + 2), (0, y, z), (10, y, z + 3), (17, y, z + 9)]
        fans.append((COMMISSURAL, 4.0, [*middle, (20, 1.1 * y, z + 22), (16, 1.15 * y, z + 42)]))
        fans.append((COMMISSURAL, 4.0, [*middle, (30, 1.1 * y, z + 11), (50, 1.2 * y, z + 16)]))
    return fans


def _bundle_dyads(world: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dyadic sums (3, V, 6) and densities (3, V) of the three systems at MNI points (V, 3)."""
    side = torch.where(world[:, 0] < 0, -1.0, 1.0)
    folded = world.clone()
    folded[:, 0] = world[:, 0].abs()
    dyads = torch.zeros((3, len(world), 6))
    density = torch.zeros((3, len(world)))
    for system, radius, points in _BUNDLES + _callosal_fans():
        centre, tangent = _polyline(np.array(points, dtype=np.float64))
        reach = 3 * radius
        low, high = centre.amin(dim=0) - reach, centre.amax(dim=0) + reach
        near = ((folded > low) & (folded < high)).all(dim=1).nonzero()[:, 0]
        kernel = torch.exp(-(torch.cdist(folded[near], centre) ** 2) / (2 * radius**2))  # (V', P)
        strength = kernel.amax(dim=1)
        vector = unit(kernel @ tangent)
        vector[:, 0] *= side[near]
        dyads[system, near] += strength[:, None] * dyadic(vector)
        density[system, near] = torch.maximum(density[system, near], strength)
    return dyads, density


def _polyline(points: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return samples (P, 3) of a Catmull-Rom curve through the points, and unit tangents (P, 3)."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        n = max(2, int(np.ceil(np.linalg.norm(c - b) / SAMPLE_SPACING_MM)))
        t = np.arange(n)[:, None] / n
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    curve = np.concatenate([*pieces, points[-1:]])
    tangent = np.gradient(curve, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    return torch.as_tensor(curve, dtype=torch.float32), torch.as_tensor(tangent, dtype=torch.float32)


def _radial_dyads(white: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Return smoothed dyadic products (6, X, Y, Z) of the direction from white matter to the cortex."""
    zooms = affine[:3, :3].norm(dim=0)
    field = gaussian_smooth(white[None], (3.0 / zooms).tolist())[0]
    slope = torch.stack(torch.gradient(field))  # (3, X, Y, Z), per voxel
    slope = torch.einsum("ji,jxyz->ixyz", torch.linalg.inv(affine[:3, :3]), slope)  # per mm, world axes
    smooth = gaussian_smooth(dyadic(slope[None])[0], (3.0 / zooms).tolist())
    return smooth / smooth[:3].sum(dim=0).clamp(min=1e-12)


def gaussian_smooth(maps: torch.Tensor, sigma_voxels) -> torch.Tensor:
    """Return (C, X, Y, Z) maps smoothed by a Gaussian of these three widths, edges replicated."""
    for axis, sigma in enumerate(sigma_voxels, start=1):
        reach = int(np.ceil(3 * sigma))
        if reach == 0:
            continue
        offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
        kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
        lines = maps.movedim(axis, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1])
        padded = torch.nn.functional.pad(flat, (reach, reach), mode="replicate")
        smooth = torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])
        maps = smooth.reshape(lines.shape).movedim(-1, axis)
    return maps
