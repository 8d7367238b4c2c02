"""Theme, and the small parts that every view is drawn with."""
