"""Sweeps: a grid of studies planned as runs, handed to an engine, and watched while they run."""
