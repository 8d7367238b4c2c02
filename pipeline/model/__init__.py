"""Works on tensors: the adapter to FastVideo, forward passes and their kernels, the start, denoising, previews."""
