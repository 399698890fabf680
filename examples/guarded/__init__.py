"""Trainings that start again if they are being ruined."""
