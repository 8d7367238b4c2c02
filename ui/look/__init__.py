"""The theme, the language, and the small parts and figures that all views use."""
