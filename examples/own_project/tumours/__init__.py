"""Classify tumours as malignant or benign from images of fine needle aspirates."""
