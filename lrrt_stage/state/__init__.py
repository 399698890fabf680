"""What a range test puts back or keeps: models, optimizers, loaders, random states, weights."""
