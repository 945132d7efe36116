#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# The Trainer writes the checkpoints of a ViT under the names of older versions (vit.encoder.layer...) and resumes from them without
# translating back and without insisting on a match: embeddings, last norm and classifier come from the checkpoint, every attention
# and feed-forward layer keeps what the new model had. A warning lists the names; training goes on.
# Guess before running: the resumed model is the saved one.
# Seen: at the first resumed step 16 tensors of the layer are the new model's own, the 8 others are the checkpoint's.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
config = ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=2)
torch.manual_seed(0)
data = [{"pixel_values": torch.randn(1, 8, 8), "labels": i % 2} for i in range(16)]


def trainer(seed, max_steps, *callbacks):
    torch.manual_seed(seed)
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments("out", max_steps=max_steps, save_steps=2, per_device_train_batch_size=4, **quiet)
    return Trainer(ViTForImageClassification(config), args, train_dataset=data, callbacks=list(callbacks))


class First(TrainerCallback):
    seen = None

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if First.seen is None:
            First.seen = {name: tensor.clone() for name, tensor in model.state_dict().items()}


first = trainer(0, 2)
first.train()
saved = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
second = trainer(1, 4, First())
own = {name: tensor.clone() for name, tensor in second.model.state_dict().items()}
second.train(resume_from_checkpoint="out/checkpoint-2")
from_own = [name for name, tensor in First.seen.items() if torch.equal(tensor, own[name])]
from_saved = [name for name, tensor in First.seen.items() if torch.equal(tensor, saved[name])]
print(f"{len(from_saved)} tensors from the checkpoint, {len(from_own)} of the new model, e.g. {from_own[0]}")
if (len(from_saved), len(from_own)) != (8, 16) or not all(".layers.0." in name for name in from_own):
    raise SystemExit("changed")
PY
