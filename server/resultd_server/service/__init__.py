"""The RPCs: validate, delegate, answer. Handlers are raw: bytes in, bytes out."""
