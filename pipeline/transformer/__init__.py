"""The transformer of LongCat-Video: its forward passes, their attention and their fused operations."""
