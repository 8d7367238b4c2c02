"""What a user starts: the plan of a request, the loaded pipeline, a comparison, a sweep."""
