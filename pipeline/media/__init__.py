"""Video files in and out, the settings they carry, attention records, likeness of two clips."""
