"""Jobs, their queue and worker, estimates and readings. Imports no gradio."""
