"""How good are the suggested learning rates? Ours and the peers', on real problems."""
