#!/bin/sh
# Train weights of Phy-Diff: sh training/phydiff_small.sh ATLAS SCANS OUT MINUTES [XTRACT]
#
# ATLAS    folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (HCP-1065 directions)
# SCANS    folder that the app wrote of the scans of role train and choose (roles.tsv), with --denoise none and
#          --output-spaces dwi template
# OUT      folder for the weights, OUT/phydiff-small.safetensors
# MINUTES  of training, in all
# XTRACT   FSL's folder of tracts, or a 4-D file with labels: the adapter is trained too, in OUT/adapter
#
# Examples are in turn registered scans and simulated subjects. Scans of role choose are not trained on: the training is
# scored on them. Called again with the same OUT and more minutes, it goes on where it stopped.
set -eu
atlas=$1 scans=$2 out=$3 minutes=$4 xtract=${5:-}
subjects=$(awk -F '\t' '$2 == "train" || $2 == "choose" { print $1 }' "$(dirname "$0")/roles.tsv")
chosen=$(awk -F '\t' '$2 == "choose" { print $1 }' "$(dirname "$0")/roles.tsv")

mkdir -p "$out"
test -f "$out/placed.safetensors" ||
    dmrigen prepare "$scans" "$out/placed.safetensors" --in-template --participant-label $subjects

export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE # on one core
train="dmrigen train phydiff --atlas $atlas --subjects 40 --batch 16 --precision bf16 --device cpu --half"
$train --out "$out" --minutes "$minutes" --data "$out/placed.safetensors" --held-out $chosen --keep-every 500
dmrigen weights verify "$out/phydiff-small.safetensors"
if [ -n "$xtract" ]; then
    $train --out "$out/adapter" --minutes 30 --init "$out/phydiff-small.safetensors" --xtract "$xtract"
    dmrigen weights verify "$out/adapter/phydiff-small.safetensors"
fi
