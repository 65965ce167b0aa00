"""How Serve's own proxy chooses an ingress: it asks each time how busy two of them are, so that one that hangs gets nothing.

Serve remembers what it was told for ten seconds, and one whose clients have just left in despair looks idle to it. HAProxy has
checks of its own and does not use this.
"""

from __future__ import annotations

from deployments.ray_private.serve import PowerOfTwoChoicesRequestRouter


class IngressRouter(PowerOfTwoChoicesRequestRouter):
    """Power of two choices by what the two say now; one that says nothing is no choice."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, "use_replica_queue_len_cache": False})
