"""Trainings as setups: ``lrrt-stage main --setup examples.setups.regression:setup``."""
