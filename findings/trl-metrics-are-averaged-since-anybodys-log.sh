#!/usr/bin/env bash
# trl 1.16.0, transformers 5.23.0, accelerate 1.15.0, datasets 5.2.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# TRL's trainers gather metrics of every step and average and clear them in log(), whoever calls it. A callback that logs a number of its
# own between two regular entries takes the metrics gathered so far with it: the regular entry, whose loss is the mean over logging_steps
# steps, then shows metrics of the last steps only.
# Guess before running: an entry of a callback's own does not change the Trainer's entries.
# Seen: the entropy at step 4 is the mean of 4 steps without, that of the last step alone with a callback that logs at step 3; the loss
# beside it is the same.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.23.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import math

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

words = ["<pad>", "<eos>"] + [f"w{i}" for i in range(30)]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
data = Dataset.from_dict({"text": [" ".join(f"w{i * j % 30}" for j in range(1, 9)) for i in range(1, 33)]})
sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


class Note(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.trainer.log({"sparsity": 0.9})


def entropies(callbacks, every):
    set_seed(0)
    quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
    args = SFTConfig("out", max_steps=4, logging_steps=every, per_device_train_batch_size=2, learning_rate=0.01, **quiet)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
    for callback in callbacks:
        callback.trainer = trainer
    trainer.train()
    return [(entry["loss"], entry["entropy"]) for entry in trainer.state.log_history if "loss" in entry]


each, (plain,), (noted,) = entropies([], 1), entropies([], 4), entropies([Note()], 4)
mean = sum(entropy for _, entropy in each) / 4
print(f"entropy of steps {[e for _, e in each]}, entry of 4 steps: {plain[1]}, with a log between: {noted[1]}")
same = [math.isclose(a, b, rel_tol=1e-6) for a, b in ((plain[1], mean), (noted[1], each[-1][1]), (noted[1], mean), (noted[0], plain[0]))]
if same != [True, True, False, True]:
    raise SystemExit("changed")
PY
