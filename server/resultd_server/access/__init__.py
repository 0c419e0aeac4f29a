"""Who may do what: roles, tokens, JWTs, certificates. Knows nothing of gRPC or the store."""
