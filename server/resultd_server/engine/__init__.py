"""Engines keep records durably. `base` is the contract, `memory` the reference, `lmdb` the default."""
