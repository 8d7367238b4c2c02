"""Reads and writes video files, their settings and their attention records, and compares two clips."""
