"""The work and its bookkeeping: queue, worker, store, files, estimates. Imports no gradio."""
