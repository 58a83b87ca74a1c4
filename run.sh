#!/usr/bin/env bash
# The whole story on drawn images, nothing downloaded: train the undefended model, both halves and both
# students, sample from them, attack them. Started again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")"

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # Ctrl-C does not reach what runs in the background

# two trainings of one thread each do almost twice the work of one with two
train() { OMP_NUM_THREADS=1 python train.py --dataset toy --preset tiny --device cpu "$@"; }
size=(--members 128 --epochs 200)

# two at a time, one progress bar below the other
train --split all "${size[@]}" &
TQDM_POSITION=1 train --split A "${size[@]}"
TQDM_POSITION=1 train --split B "${size[@]}"
wait $!

train --distill cross &
TQDM_POSITION=1 train --distill average
wait $!

for model in all dual distill-cross distill-average; do
    python sample.py --dataset toy --device cpu --model $model
done
python evaluate.py --dataset toy --device cpu
