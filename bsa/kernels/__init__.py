"""The Triton kernels. Importing this package imports no Triton; each of its modules does."""
