"""Keeps what the app writes: the record of jobs, their folders, and the account of the disk."""
