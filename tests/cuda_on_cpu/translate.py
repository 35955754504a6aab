# SPDX-License-Identifier: Apache-2.0
"""Turns a CUDA source into C++ that tests/cuda_on_cpu/include can run: translate.py SOURCE RESULT

Only what is not C++ changes: launches, and arrays in a block's shared memory."""
import re
import sys
from pathlib import Path


def closing(text, start, opening, end):
    """Where the bracket at `start` is closed."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == opening) - (text[i] == end)
        if depth == 0:
            return i
    raise ValueError(f"no {end} for {text[start:start + 40]}")


def kernel_begin(text, end):
    """Where the kernel's name begins that ends before `end`: name, or name<arguments>."""
    while text[end - 1].isspace():
        end -= 1
    if text[end - 1] == ">":
        depth = 0
        for i in range(end - 1, -1, -1):
            depth += (text[i] == ">") - (text[i] == "<")
            if depth == 0:
                end = i
                break
    return re.search(r"[\w:]+\Z", text[:end]).start()


def translate(text):
    text = re.sub(r"extern __shared__ ([\w:]+) (\w+)\[\];", r"auto* const \2 = static_cast<\1*>(::emulation::dynamic_shared());", text)
    text = text.replace("__shared__ ", "static ")  # blocks run one after the other
    while (launch := text.find("<<<")) >= 0:
        begin = kernel_begin(text, launch)
        end = text.index(">>>", launch)
        open_arguments = end + 3 + len(text[end + 3:]) - len(text[end + 3:].lstrip())
        close = closing(text, open_arguments, "(", ")")
        kernel, shape, arguments = text[begin:launch].strip(), text[launch + 3:end], text[open_arguments:close + 1]
        text = f"{text[:begin]}::emulation::launch([&] {{ {kernel}{arguments}; }}, {shape}){text[close + 1:]}"
    return text


source, result = map(Path, sys.argv[1:])
result.parent.mkdir(parents=True, exist_ok=True)
result.write_text(f'#line 1 "{source}"\n' + translate(source.read_text()))
