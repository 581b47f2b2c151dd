#!/bin/sh
# Train the default weights of QID²: sh training/qid2_small.sh ATLAS SCANS OUT MINUTES
#
# ATLAS    folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (HCP-1065 directions)
# SCANS    folder that the app wrote of the scans of role train and choose (roles.tsv), with --denoise none
# OUT      folder for the weights, OUT/qid2-small.safetensors
# MINUTES  of training, in all
#
# Examples are in turn directions of the scans that the network is not shown, simulated scans of their anatomies, and
# simulated scans of simulated subjects. Scans of role choose are not trained on: the training is scored on them. Called
# again with the same OUT and more minutes, it goes on where it stopped.
set -eu
atlas=$1 scans=$2 out=$3 minutes=$4
subjects=$(awk -F '\t' '$2 == "train" || $2 == "choose" { print $1 }' "$(dirname "$0")/roles.tsv")
chosen=$(awk -F '\t' '$2 == "choose" { print $1 }' "$(dirname "$0")/roles.tsv")

mkdir -p "$out"
test -f "$out/scans.safetensors" || dmrigen prepare "$scans" "$out/scans.safetensors" --participant-label $subjects
test -f "$out/anatomies.safetensors" ||
    dmrigen prepare "$scans" "$out/anatomies.safetensors" --anatomies --participant-label $subjects

export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE # on one core
dmrigen train qid2 --out "$out" --data "$out/scans.safetensors" --anatomies "$out/anatomies.safetensors" \
    --atlas "$atlas" --subjects 60 --batch 16 --minutes "$minutes" --precision bf16 --device cpu \
    --held-out $chosen --keep-every 500
dmrigen weights verify "$out/qid2-small.safetensors"
