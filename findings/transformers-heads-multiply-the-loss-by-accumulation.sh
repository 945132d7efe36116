#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# With gradient accumulation the Trainer expects a model to divide its loss by the number of items in the whole batch. Sequence
# classification heads (BERT, Llama) accept the number and ignore it, so loss and gradient come out multiplied by the number of micro-batches.
# The language-model head of the same Llama is right.
# Guess before running: one batch of 8 and four of 2 give one loss and one gradient.
# Seen: BERT classifier loss 0.69 and 2.77, gradient norm times 4; Llama classifier times 4; Llama language model times 1.
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
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers import LlamaForSequenceClassification, Trainer, TrainingArguments

sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
bert = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
llama = LlamaConfig(**sizes, num_labels=2, pad_token_id=0)
rows = [{"input_ids": torch.arange(4) + i, "labels": torch.tensor(i % 2)} for i in range(8)]
texts = [{"input_ids": torch.arange(4) + i, "labels": torch.arange(4) + i} for i in range(8)]


def gradient(model, config, data, batch, accumulation):
    torch.manual_seed(0)
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    each = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    trainer = Trainer(model(config), TrainingArguments("out", max_steps=1, **each, **quiet), train_dataset=data)
    trainer.train()
    return trainer.state.log_history[0]["grad_norm"]


cases = {
    "BERT classifier": (BertForSequenceClassification, bert, rows),
    "Llama classifier": (LlamaForSequenceClassification, llama, rows),
    "Llama language model": (LlamaForCausalLM, llama, texts),
}
seen = {name: round(gradient(*case, 2, 4) / gradient(*case, 8, 1), 2) for name, case in cases.items()}
print("gradient norm of 4 x 2 over that of 1 x 8:", seen)
if list(seen.values()) != [4.0, 4.0, 1.0]:
    raise SystemExit("changed")
PY
