"""Estimates the cost of a request and whether it fits: counts, measurements, refusal, advice."""
