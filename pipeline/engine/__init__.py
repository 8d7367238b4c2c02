"""The pipeline in a separate process: both ends of the connection."""
