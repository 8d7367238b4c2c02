"""Jobs and their bookkeeping: queue, worker, store, files, estimates. Imports no gradio."""
