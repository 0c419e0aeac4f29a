"""`resultd demo`: real workers report real work, an app streams the group's results.

Words are counted in the standard library's own sources, one task a file. In the middle the
server is killed and started again; at the end everything has to add up.
"""
