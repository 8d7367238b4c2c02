"""Checkpoint folders: their facts, their files, whether to trust them, and their download. Imports no torch."""
