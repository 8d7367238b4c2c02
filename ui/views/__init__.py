"""What a visitor sees of the work: videos, reports, live readings, history, sweep, inspector."""
