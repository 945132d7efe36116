"""Made tests/data/condensed_v1 once: a version-1 checkpoint that every later hf_srigl must load.

Run again only into a new folder, for a new format version: python tests/data/make_condensed_v1.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_srigl import SRigL, SRigLConfig, sparsify


def make(folder):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    dense = BertForSequenceClassification(
        BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=8, num_labels=3, initializer_range=0.5)
    )
    config = SRigLConfig(
        sparsity=0.75, exclude_modules=["pooler.dense"], update_every=2, drop_fraction=0.5, gamma_sal=0.9, seed=7
    )
    model = sparsify(dense, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=10)
    inputs = {"input_ids": torch.tensor([[2, 5, 7, 11, 13, 3], [2, 19, 17, 3, 0, 0]])}
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    for _ in range(4):  # two updates: neurons are ablated, slots are left over
        optimizer.zero_grad()
        model(**inputs, labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
        srigl.step()
    srigl.close()
    model.eval().save_pretrained(folder)
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = {**{name: tensor.tolist() for name, tensor in inputs.items()}, "logits": logits.tolist()}
    (Path(folder) / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    if Path(sys.argv[1]).exists():
        sys.exit(f"{sys.argv[1]} exists: committed checkpoints are never made anew")
    make(sys.argv[1])
