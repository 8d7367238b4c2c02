"""The views of the work: videos, reports, live readings, history, sweep, inspector."""
