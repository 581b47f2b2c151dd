#!/bin/sh
# Train the default weights of QID²: sh training/qid2_small.sh ATLAS BIDS_DIR PREPROCESSED OUT
#
# ATLAS         folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (HCP-1065 directions)
# BIDS_DIR      scans to learn from besides simulated people: for the shipped weights seven subjects of five vendors,
#               none of them the subject of any figure in the documentation
# PREPROCESSED  folder for those scans as the app preprocesses them, not denoised
# OUT           folder for the weights; the last ones, OUT/final/qid2-small.safetensors, are those to ship
#
# Both trainings go on where they stopped when this is called again. For the shipped weights they took 29 minutes (1000
# steps, with white noise: the simulator's noise was not yet correlated in space) and 46 minutes (1841 steps) on two cores
# that others used too.
set -eu
atlas=$1 data=$2 preprocessed=$3 out=$4

subjects="elition ge15t prisma sagittal slab thick uih"
bids_dmrigen "$data" "$preprocessed" participant --participant-label $subjects --methods difusion --denoise none
dmrigen prepare "$preprocessed" "$out/scans.safetensors" --participant-label $subjects

dmrigen train qid2 --out "$out/first" --atlas "$atlas" --people 60 --minutes 29 --precision bf16
dmrigen train qid2 --out "$out/final" --init "$out/first/qid2-small.safetensors" \
    --data "$out/scans.safetensors" --atlas "$atlas" --people 60 --minutes 46 --precision bf16
dmrigen weights verify "$out/final/qid2-small.safetensors"
