"""Times operators side by side with what else could be used, and with what the machine can move.

`cases` says what is computed, `peers` by whom, `checking` that it is right, `limit` how fast the
machine could be, `runner` measures, `record` keeps it, `tables` and `plots` show it. Every peer is
optional; nothing is imported before it is asked for.
"""
