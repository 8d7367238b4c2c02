"""Requests and results as plain values. Imports no torch."""
