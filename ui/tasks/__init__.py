"""The tasks beside text to video: their fields, their jobs, and their parts of the page."""
