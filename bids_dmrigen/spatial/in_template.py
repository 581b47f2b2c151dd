"""Methods that work in the template's space: a scan's b0 goes there, and what they make of it comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..dwi.gradients import GradientTable, even_subset
from ..dwi.series import Scan
from ..methods.base import Generated, InTemplate, LeftOut, Method, Population, Request
from ..methods.synthesis.task import BVALUES, DIRECTIONS, wanted_table
from .template_space import TemplateSpace

DEFAULTS = {"adc": "packaged ADC atlas", "tracts": "none", "fibres": "embedded analytic bundles"}
OTHER_SPACE = (
    "the ADC atlas ({atlas}) is in {space}, the template is {template}: the two lie some millimetres apart; make an "
    "atlas in {template} with `dmrigen prepare --adc-atlas`"
)
OTHER_PLACES = (
    "the template is {template}: weights and atlases know brains by their place in MNI152 space, which is another; "
    "use a template of that space"
)


@dataclass(frozen=True)
class TemplateFiles:
    """What is known of the template and of the scan's place in it.

    Parameters
    ----------
    brain
        The template's brain mask, an image on a grid of its own.
    to_template, from_template
        Transforms as `Normalize` writes them.
    adc
        The ADC atlas; None for the packaged one.
    xtract
        FSL's folder of XTRACT or a 4-D file; None for no tracts.
    fibres
        Folder of an atlas with fibre directions; None for the embedded one.
    template
        TemplateFlow name of the template; None: nothing is said of atlases in other spaces.
    """

    brain: Path
    to_template: Path
    from_template: Path
    adc: Path | None = None
    xtract: Path | None = None
    fibres: Path | None = None
    template: str | None = None

    @property
    def adc_atlas(self) -> Path:
        """The ADC atlas that is used."""
        from .population import PACKAGED_ADC_ATLAS

        return self.adc or PACKAGED_ADC_ATLAS

    def called(self, kind: str) -> str:
        """Return what the adc, tracts or fibres that are used are called: no path, which may tell who was scanned."""
        path = {"adc": self.adc, "tracts": self.xtract, "fibres": self.fibres}[kind]
        return DEFAULTS[kind] if path is None else path.name

    def record(self, kind: str) -> dict[str, str]:
        """Return name and, of what is read from files, digest of the adc, tracts or fibres that are used."""
        from .population import digest

        path = {"adc": self.adc_atlas, "tracts": self.xtract, "fibres": self.fibres}[kind]
        told = {"Name": self.called(kind)}
        return told if path is None else told | {"SHA256": digest(kind, path)}

    def warnings(self, told: Sequence[str]) -> tuple[str, ...]:
        """Return what is to be said where the template is in another space than MNI's, or than the ADC atlas told."""
        from .population import ANY_MNI, other_space

        if self.template is None:
            return ()
        said = [] if self.template.startswith(ANY_MNI) else [OTHER_PLACES.format(template=self.template)]
        space = other_space(self.adc_atlas, self.template) if "adc" in told else None
        if space is not None:
            said.append(OTHER_SPACE.format(atlas=self.called("adc"), space=space, template=self.template))
        return tuple(said)


def generate_in_template(
    method: Method, scan: Scan, request: Request, files: TemplateFiles, tensor_volumes: Sequence[int] | None = None
) -> Generated:
    """Run a method on a scan's b0 in the template's space; return acquired and generated volumes on the scan's grid.

    Acquired diffusion-weighted volumes are not shown to the method. It makes some of them too, as a check.

    Parameters
    ----------
    method
        One whose `spec.in_template` is true.
    scan
        The preprocessed series.
    request
        Options: bvalues, directions (see `wanted_table`). Of each shell `left_out` acquired volumes are made too.
    files
        Of the template.
    tensor_volumes
        Of the result, those that a tensor may be fitted to, for the record; None for all.
    """
    from .io import read_image

    brain, image = read_image(files.brain)
    space = TemplateSpace.of(
        scan.mask,
        scan.affine,
        brain > 0.5,
        image.affine,
        [files.to_template],
        [files.from_template],
        method.spec.grid_mm,
    )
    b0 = GradientTable(np.zeros(1), np.zeros((1, 3)), scan.gradients.b0_threshold)
    there = Scan(
        space.onto_template(scan.mean_b0())[..., None].clip(0), space.affine, b0,
        space.onto_template(scan.mask, order=1) > 0.5,
    )  # fmt: skip
    options = request.options
    wanted = wanted_table(
        scan, options.get(BVALUES.key, BVALUES.default), options.get(DIRECTIONS.key, DIRECTIONS.default)
    )
    hidden = _checked(scan.gradients, request.left_out)
    table = space.table_on_template(_joined(wanted, scan.gradients[hidden]))
    kinds = method.spec.population
    maps = _population(kinds, files, space)
    made = method.generate(None, there, replace(request, population=maps, options={**options, "table": table}))
    fitted = {"TensorVolumes": list(tensor_volumes)} if tensor_volumes else {}
    record = made.record | fitted | {"Population": {kind: files.record(kind) for kind in kinds}}
    in_template = InTemplate(
        np.concatenate([there.data, made.mean[..., : len(wanted)]], axis=3),
        _joined(there.gradients, table[: len(wanted)]),
        space.affine,
    )
    return replace(
        _onto_scan(made, space, scan, wanted, hidden),
        record=record,
        warnings=(*made.warnings, *files.warnings(kinds)),
        in_template=in_template,
    )


def _population(kinds: Sequence[str], files: TemplateFiles, space: TemplateSpace) -> Population:
    """Return the maps of the population that a method asks for, on the grid over the template."""
    from .population import population_on
    from .templates import read_anatomy

    maps = Population()
    if "adc" in kinds:
        maps = population_on(space.shape, space.affine, files.adc_atlas, files.xtract if "tracts" in kinds else None)
    return replace(maps, anatomy=read_anatomy(files.fibres)) if "fibres" in kinds else maps


def _onto_scan(
    made: Generated, space: TemplateSpace, scan: Scan, wanted: GradientTable, hidden: np.ndarray
) -> Generated:
    """Return the scan's own volumes followed by the wanted ones, on its grid; the hidden ones are a check."""
    mean = space.onto_scan(made.mean).clip(0) * scan.mask[..., None]
    std = None
    if made.std is not None:
        spread = space.onto_scan(made.std[..., : len(wanted)], order=1) * scan.mask[..., None]
        std = np.concatenate([np.zeros(scan.data.shape, np.float32), spread], axis=3)
    return replace(
        made,
        mean=np.concatenate([np.asarray(scan.data, np.float32), mean[..., : len(wanted)]], axis=3),
        std=std,
        gradients=_joined(scan.gradients, wanted),
        acquired=np.arange(len(scan.gradients) + len(wanted)) < len(scan.gradients),
        left_out=LeftOut(hidden, mean[..., len(wanted) :]) if len(hidden) else None,
    )


def _checked(gradients: GradientTable, n: int) -> np.ndarray:
    """Return the volumes of up to n directions of each shell, as evenly spread as they can be."""
    shells = [members for _, members in gradients.shells()] if n else []
    chosen = [members[even_subset(gradients.bvecs[members], min(n, len(members)))] for members in shells]
    return np.sort(np.concatenate([*chosen, np.zeros(0, int)])).astype(int)


def _joined(first: GradientTable, second: GradientTable) -> GradientTable:
    """Return one table of two in the same axes."""
    return GradientTable(
        np.concatenate([first.bvals, second.bvals]), np.concatenate([first.bvecs, second.bvecs]), first.b0_threshold
    )
