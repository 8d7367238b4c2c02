"""What a request will cost, and whether it fits: counts, measurements, refusal, advice."""
