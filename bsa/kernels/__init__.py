"""The Triton kernels. Importing this package does not import Triton, but each of its modules does."""
