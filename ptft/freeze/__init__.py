"""Which parameters are trainable: the strategy language, added parameters, frozen weights in fewer bits, and
the proof of a freeze."""
