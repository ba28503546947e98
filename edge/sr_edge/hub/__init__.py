"""Models from a hub: what a user means, what the hub has, which of its files, fetched so that a cut costs
nothing, and put on the shelf.

`reference` reads a repository's name, `repository` asks what is in it, `choosing` says which files,
`download` fetches one of them, `pull` does all of it. How bytes travel is `sr_edge.remote.hub_client`'s.
"""

from __future__ import annotations
