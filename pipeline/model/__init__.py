"""Around the transformer: the adapter to FastVideo, the start, denoising, previews, records, the classifier."""
