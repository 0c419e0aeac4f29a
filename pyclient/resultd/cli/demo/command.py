"""`resultd demo`."""


def demo() -> None:
    """See the main job done."""
