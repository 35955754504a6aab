// SPDX-License-Identifier: Apache-2.0
// The gate of Memory+ (Berges et al., "Memory Layers at Scale", arXiv 2412.09764): z = y silu(g),
// silu(g) = g / (1 + e^-g).
#pragma once

#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

// All views have one shape, (T, width). z may be y or gate.
PKM_OP(silu_gate_forward, Matrix<const float> y, Matrix<const float> gate, Matrix<float> z)

// dy = dz silu(gate), dgate = dz y silu'(gate). dy or dgate may be dz.
PKM_OP(silu_gate_backward, Matrix<const float> y, Matrix<const float> gate, Matrix<const float> dz, Matrix<float> dy,
       Matrix<float> dgate)

}  // namespace pkmesh
