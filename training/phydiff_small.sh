#!/bin/sh
# Train weights of Phy-Diff: sh training/phydiff_small.sh ATLAS OUT [XTRACT]
#
# ATLAS   folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (HCP-1065 directions)
# OUT     folder for the weights, OUT/phydiff-small.safetensors
# XTRACT  FSL's folder of tracts, or a 4-D file with labels: the adapter is trained too, in OUT/adapter
#
# The training goes on where it stopped when this is called again. The shipped weights had another history, which their
# card has: 61 minutes before the learnt atlas was added, 31 minutes with it, 33 more on subjects with bright rims.
# Their adapter had 8.5 minutes.
set -eu
atlas=$1 out=$2 xtract=${3:-}

export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE # a process per core: one alone waits between short operations
train="torchrun --nproc-per-node 2 -m bids_dmrigen.cli.train phydiff --atlas $atlas --subjects 40 --batch 16 --precision bf16 --device cpu --half"
$train --out "$out" --minutes 90
dmrigen weights verify "$out/phydiff-small.safetensors"
if [ -n "$xtract" ]; then
    $train --out "$out/adapter" --minutes 30 --init "$out/phydiff-small.safetensors" --xtract "$xtract"
    dmrigen weights verify "$out/adapter/phydiff-small.safetensors"
fi
