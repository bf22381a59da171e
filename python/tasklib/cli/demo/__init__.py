"""The demonstration: a small application, run for real, and checked against the disk."""
