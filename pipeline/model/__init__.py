"""What runs on tensors: the adapter to FastVideo, forwards and their kernels, the start, denoising, previews."""
