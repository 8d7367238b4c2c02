"""Scripts that train `assets/longcat-tiny`: rendered clips with captions, the VAE, the transformer, its distillation."""
