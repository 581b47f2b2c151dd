#!/bin/sh
# Train the default weights of QID²: sh training/qid2_small.sh ATLAS BIDS_DIR PREPROCESSED OUT
#
# ATLAS         folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (HCP-1065 directions)
# BIDS_DIR      scans to learn from besides simulated subjects: for the shipped weights seven subjects of five vendors,
#               none of them the subject of any figure in the documentation
# PREPROCESSED  folder for those scans as the app preprocesses them, not denoised
# OUT           folder for the weights, OUT/qid2-small.safetensors
#
# The training goes on where it stopped when this is called again. For the shipped weights it took 42 minutes, 1517 steps,
# on two cores that others used too.
set -eu
atlas=$1 data=$2 preprocessed=$3 out=$4

subjects="elition ge15t prisma sagittal slab thick uih"
bids_dmrigen "$data" "$preprocessed" participant --participant-label $subjects --methods sh --denoise none
dmrigen prepare "$preprocessed" "$out/real.safetensors" --participant-label $subjects

dmrigen train qid2 --out "$out" --data "$out/real.safetensors" --atlas "$atlas" --subjects 60 --minutes 42 --precision bf16
dmrigen weights verify "$out/qid2-small.safetensors"
