"""Trains `assets/longcat-tiny`: rendered clips with captions, VAE, transformer, distillation."""
