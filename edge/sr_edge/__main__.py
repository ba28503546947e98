"""`python -m sr_edge` is `sr-edge`."""

from sr_edge.commands import main

main()
