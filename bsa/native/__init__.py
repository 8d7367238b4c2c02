"""Attention as C for processors with AVX-512, compiled when it is first used. Optional: without a compiler, or on other
processors, PyTorch computes (`bsa.products`, `bsa.gather`). docs/cpu.md has what it gains.
"""
