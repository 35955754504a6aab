# SPDX-License-Identifier: Apache-2.0
"""What is compared: said once, for PyTorch and for pkmesh."""

# One memory layer alone, with 4 heads of 32 neighbours: d, n, c, tokens.
LAYERS = {"a": (1024, 512, 512, 512), "b": (1024, 512, 512, 2048), "c": (256, 128, 128, 4096)}

# A language model; the memory replaces the feed-forward layer of one block.
MODEL = {"layers": 6, "d": 512, "heads": 8, "context": 256, "vocabulary": 16384, "memory_layer": 3, "n": 256, "c": 256}
BATCH = 8  # sequences, over all processes
WEIGHT_DECAY = 0.01

MODEL_CONFIG = """
model {{ layers: {layers} width: {d} heads: {heads} context: {context}
        memory {{ layers: {memory_layer} heads: 4 neighbours: 32 sub_keys: {n} key_width: {c} }} }}
tokenizer {{ vocabulary: {vocabulary} }}
train {{ batch: {batch} }}
optimizer {{ weight_decay: {decay} clip_norm: 0 }}
values {{ clip_norm: 0 }}
""".format(**MODEL, batch=BATCH, decay=WEIGHT_DECAY)


def layer_overrides(d, n, c, tokens):
    """`--set` arguments that give `pkmesh bench layer` the same shape."""
    options = {"model.width": d, "model.heads": 4, "model.context": tokens, "train.batch": 1,
               "model.memory.0.sub_keys": n, "model.memory.0.key_width": c}
    return [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
