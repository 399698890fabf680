"""Trainings of one's own as setups: ``lrrt-stage main --setup examples.setups.regression:setup``."""
