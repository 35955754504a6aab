// SPDX-License-Identifier: Apache-2.0
// The program's own NCCL communicator, compiled for the asynchronous device and the fake library.
#include "comm/nccl_cuda.cu"
