"""The theme, and small parts that all views use."""
