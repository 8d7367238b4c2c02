"""The named endpoints for scripts."""
