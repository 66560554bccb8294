"""RAMP's truth in RAMP's words. Stores know nothing of workers."""
