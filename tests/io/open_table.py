# SPDX-License-Identifier: Apache-2.0
"""Reads a table of a pkmesh checkpoint with numpy alone: open_table.py CHECKPOINT TABLE"""
import glob
import json
import sys

import numpy as np


def open_safetensors(path):
    """The tensors of one file, by name."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U32": "<u4", "U8": "u1", "BF16": "<u2"}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensor = data[begin:end].view(types[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of a float
            tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = tensor
    return tensors


def open_table(checkpoint, table):
    """The whole table: the files hold consecutive rows."""
    files = [open_safetensors(path) for path in sorted(glob.glob(f"{glob.escape(checkpoint)}/table-{table}-*.safetensors"))]
    return {name: np.concatenate([file[name] for file in files]) for name in files[0]}


if __name__ == "__main__":
    for name, tensor in sorted(open_table(*sys.argv[1:3]).items()):
        print(name, tensor.shape, tensor.dtype, "first %g last %g" % (tensor.flat[0], tensor.flat[-1]))
