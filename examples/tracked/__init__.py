"""Tracked range tests inside trainings of one's own: a loop, a Trainer, and a LightningModule."""
