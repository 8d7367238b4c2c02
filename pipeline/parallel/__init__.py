"""One video on several GPUs: shares of tokens and heads, rows of guidance, strips of frames, and their ranks."""
