"""What a stream sends: interest in tasks and groups, turned into events. No grpc, no lmdb."""
