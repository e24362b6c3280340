"""Fused attention kernels for TPUs and NVIDIA GPUs."""
