"""What must be pinned before torch is imported so that two hosts of one class produce the same bits."""

from __future__ import annotations


def pin(threads: int) -> dict[str, str]:
    """Environment variables for a process that trains or replays with `threads` CPU threads.

    The kernels' instruction set is pinned (ATen, oneDNN, MKL), so that CPUs that differ in what lies above AVX2 still
    belong to one class; PYTHONHASHSEED fixes the order of sets; CUBLAS_WORKSPACE_CONFIG is what deterministic
    algorithms on CUDA ask for.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_DYNAMIC": "FALSE",
        "MKL_DYNAMIC": "FALSE",
        "MKL_CBWR": "AVX2,STRICT",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONHASHSEED": "0",
    }
