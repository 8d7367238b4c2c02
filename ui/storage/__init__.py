"""Keeps all files of the app: the record of jobs, their folders, and the account of the disk."""
