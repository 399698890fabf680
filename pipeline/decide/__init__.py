"""Decisions that take more than one range test."""
