"""The rules, written once over an ordered key-value transaction.

What a report does to a record, how groups count, who may claim, what expires: pure
functions of a transaction, a clock reading and a request. They run inside an engine's
transaction, so every engine that has one gets the same behaviour; they import nothing
above them, no grpc and no lmdb.
"""
