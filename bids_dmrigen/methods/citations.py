"""References that several compared arms share."""

from __future__ import annotations

from .spec import Citation

REN = Citation(
    key="ren2021qspace",
    text=(
        "Ren M, Kim H, Dey N, Gerig G (2021). Q-space Conditioned Translation Networks for Directional Synthesis of "
        "Diffusion Weighted Images from Multi-modal Structural MRI. MICCAI 2021. arXiv:2106.13188"
    ),
    bibtex=(
        "@inproceedings{ren2021qspace,\n"
        "  title = {Q-space Conditioned Translation Networks for Directional Synthesis of Diffusion Weighted Images "
        "from Multi-modal Structural {MRI}},\n  author = {Ren, Mengwei and Kim, Heejong and Dey, Neel and "
        "Gerig, Guido},\n  booktitle = {MICCAI},\n  year = {2021},\n  eprint = {2106.13188},\n"
        "  archivePrefix = {arXiv}\n}"
    ),
)
GOLKOV = Citation(
    key="golkov2016qdl",
    text=(
        "Golkov V, Dosovitskiy A, Sperl JI, Menzel MI, Czisch M, Sämann P, Brox T, Cremers D (2016). q-Space Deep "
        "Learning: Twelve-Fold Shorter and Model-Free Diffusion MRI Scans. IEEE Transactions on Medical Imaging "
        "35(5):1344-1351. doi:10.1109/TMI.2016.2551324"
    ),
    bibtex=(
        "@article{golkov2016qdl,\n"
        "  title = {q-Space Deep Learning: Twelve-Fold Shorter and Model-Free Diffusion {MRI} Scans},\n"
        "  author = {Golkov, Vladimir and Dosovitskiy, Alexey and Sperl, Jonathan I and Menzel, Marion I and Czisch, "
        'Michael and S\\"amann, Philipp and Brox, Thomas and Cremers, Daniel},\n'
        "  journal = {IEEE Transactions on Medical Imaging},\n  year = {2016},\n  volume = {35},\n  number = {5},\n"
        "  pages = {1344--1351},\n  doi = {10.1109/TMI.2016.2551324}\n}"
    ),
)
