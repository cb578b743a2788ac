#!/usr/bin/env python3
"""Makes a Hugging Face model with a longer vocabulary: widen_vocabulary.py MODEL OUT TOKENS.

`make bench` measures long rows of logits with such models. The new tokens are noisy copies of the tokens that the model
finds least probable, so its text hardly changes. The tokenizer never makes them.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

source, out, tokens = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(1)
model = AutoModelForCausalLM.from_pretrained(source)
old = model.config.vocab_size
if tokens <= old:
    sys.exit(f"{source} has {old} tokens already; TOKENS must be more than that, but is {tokens}")
with torch.no_grad():
    sample = torch.arange(16, min(old, 1040)).reshape(1, -1)[:, : model.config.max_position_embeddings]
    unlikely = model(sample).logits[0].mean(0).topk(64, largest=False).indices
    model.resize_token_embeddings(tokens, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = layer.weight[unlikely[torch.arange(tokens - old) % len(unlikely)]]
        layer.weight[old:] = rows + 0.05 * rows.std() * torch.randn_like(rows)
model.save_pretrained(out)
for file in source.iterdir():
    if file.suffix == ".json" and ("token" in file.name or file.name == "generation_config.json"):
        shutil.copy(file, out)
tokenizer = json.loads((out / "tokenizer.json").read_text())
vocabulary = tokenizer["model"]["vocab"]
taken = {*vocabulary.values(), *(added["id"] for added in tokenizer["added_tokens"])}
vocabulary.update({f"<new {token}>": token for token in range(tokens) if token not in taken})
(out / "tokenizer.json").write_text(json.dumps(tokenizer))
