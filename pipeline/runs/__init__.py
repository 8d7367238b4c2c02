"""Everything a user can start: the plan of a request, the loaded pipeline, a comparison, a long video."""
