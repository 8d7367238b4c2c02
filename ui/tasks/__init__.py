"""The tasks beside text to video: their fields, their jobs, and what the page shows of them."""
