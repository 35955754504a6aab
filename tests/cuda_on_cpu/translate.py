# SPDX-License-Identifier: Apache-2.0
"""Turns a CUDA source into C++ that grid.h can run: translate.py SOURCE RESULT

Only what is not C++ changes: launches, a block's shared memory, and __launch_bounds__. Lines keep their numbers."""
import re
import sys
from pathlib import Path

# In a number of lines that must not change: each result stands on one line.
DYNAMIC = re.compile(r"extern __shared__ ([\w:]+) (\w+)\[\];")
STATIC = re.compile(r"__shared__ ([\w:]+) (\w+)((?:\[[^\]]*\])*);")
BOUNDS = re.compile(r"__launch_bounds__(?=\()")


def closing(text, start):
    """Where the bracket at `start` is closed."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "({") - (text[i] in ")}")
        if depth == 0:
            return i
    raise ValueError(f"nothing closes {text[start:start + 40]}")


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


def declare(match):
    kind, name, extents = match.groups()
    return (f"static ::emulation::SharedArray {name}_place; using {name}_type = {kind}{extents}; "
            f"auto& {name} = *static_cast<{name}_type*>(::emulation::shared_array({name}_place, sizeof({name}_type)));")


def check_bounds(text):
    """__launch_bounds__(BOUNDS) name(...) { begins with a check of them."""
    for match in reversed(list(BOUNDS.finditer(text))):
        end = closing(text, match.end())
        parameters_end = closing(text, text.index("(", end + 1))
        body = text.index("{", parameters_end) + 1
        text = f"{text[:body]} ::emulation::check_bounds{text[match.end():end + 1]};{text[body:]}"
    return text


def translate(text):
    text = DYNAMIC.sub(r"auto* const \2 = static_cast<\1*>(::emulation::dynamic_shared());", text)
    text = STATIC.sub(declare, text)
    if re.search(r"\b__shared__\b(?!`)", re.sub(r"//.*", "", text)):
        raise ValueError("a __shared__ that this script does not know")
    text = check_bounds(text)
    while (launch := text.find("<<<")) >= 0:
        begin = kernel_begin(text, launch)
        end = text.index(">>>", launch)
        opening = text.index("(", end)
        close = closing(text, opening)
        kernel, shape, arguments = text[begin:launch].rstrip(), text[launch + 3:end], text[opening + 1:close]
        newlines = "\n" * text[begin:launch].count("\n")
        text = (f"{text[:begin]}{newlines}::emulation::launch(::emulation::Shape({shape}), "
                f"[=](const auto&... kernel_arguments) {{ {kernel}(kernel_arguments...); }}, {arguments}){text[close + 1:]}")
    return text


if __name__ == "__main__":
    source, result = map(Path, sys.argv[1:])
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(f'#line 1 "{source}"\n' + translate(source.read_text()))
