"""All that runs on tensors: the adapter to FastVideo, forwards, kernels, 8-bit weights, offload, LoRA, denoising."""
