#!/usr/bin/env bash
# Use an exported zip as a stranger would: bash tests/exports/fresh_environment.sh ZIP SCHEMA WORK_FOLDER
# SCHEMA is MONAI's meta_schema_20240725.json. Makes an environment of the pinned packages alone (in WORK_FOLDER/venv, kept),
# segments three images, trains one step per stage, and runs MONAI's verify_metadata, verify_net_in_out and ckpt_export.
set -euo pipefail
zip=$(realpath "$1") schema=$(realpath "$2") work=$(realpath -m "$3")
name=$(basename "$zip" .zip)
python=$work/venv/bin/python
mkdir -p "$work" && cd "$work"
rm -rf "$name" && python3 -m zipfile -e "$zip" "$work"
[ -x "$python" ] || python3 -m venv venv
python3 - "$name" > requirements.txt << 'EOF'
import json, sys
metadata = json.load(open(f"{sys.argv[1]}/configs/metadata.json"))
packages = {name: metadata[f"{key}_version"] for name, key in (("monai", "monai"), ("torch", "pytorch"), ("numpy", "numpy"))}
print("\n".join(f"{name}=={pin}" for name, pin in (packages | metadata["required_packages_version"]).items()))
EOF
"$python" -m pip install -q -r requirements.txt
"$python" - "$work/data" << 'EOF'
import sys
from pathlib import Path
import numpy as np
from PIL import Image
rng = np.random.default_rng(0)
for split, labels in (("train", ("[1 0 0]", "[0 1 1]")), ("val", ("", "", "")), ("test", ("",))):
    for kind in ("img",) if split == "train" else ("img", "mask"):
        folder = Path(sys.argv[1], split, kind)
        folder.mkdir(parents=True, exist_ok=True)
        for index, label in enumerate(labels):
            shape, high = ((64, 64, 3), 256) if kind == "img" else ((64, 64), 4)
            Image.fromarray(rng.integers(0, high, shape, dtype=np.uint8)).save(folder / f"{index}{label}.png")
EOF
bundle=$work/$name
run() { echo "+ python $*"; "$python" "$@"; }
cd "$(mktemp -d)" # any folder but the bundle's
run -m monai.bundle run --config_file "$bundle/configs/inference.json" --bundle_root "$bundle" \
    --dataset_dir "$work/data/val/img" --output_dir "$work/$name-masks"
[ "$(ls "$work/$name-masks/masks" | wc -l)" = 3 ] && echo "three masks"
rm -rf "$work/$name-run"
run -m monai.bundle run training --config_file "$bundle/configs/train.json" --bundle_root "$bundle" \
    --dataset_dir "$work/data" --output_dir "$work/$name-run" --classification#epochs 1 --train#epochs 1 \
    --classification#batch_size 2 --train#batch_size 2
grep -c "of 1 steps" "$work/$name-run/run.log" && ls "$work/$name-run/models/model.pt"
cd "$bundle" # for these, the bundle's scripts come from the working directory alone
run -m scripts segment "$work/data/val/img" --run . --output-dir "$work/$name-commands"
mkdir -p eval && cp "$schema" eval/schema.json
run -m monai.bundle verify_metadata --meta_file configs/metadata.json --filepath eval/schema.json \
    --hash_val 06954cad2cc5d3784e72077ac76f0fc8
run -m monai.bundle verify_net_in_out network_def --meta_file configs/metadata.json --config_file configs/inference.json
run -m monai.bundle ckpt_export network_def --filepath models/model.ts --ckpt_file models/model.pt \
    --meta_file configs/metadata.json --config_file configs/inference.json
"$python" -c "import torch; print(torch.jit.load('models/model.ts')(torch.rand(2, 3, 100, 90)).shape)"
echo "all done: $name"
