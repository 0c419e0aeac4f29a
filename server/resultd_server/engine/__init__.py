"""Engines keep records durably: `base` is the contract, `memory` the reference."""
