"""Which student tokens stand for which teacher tokens.

`rules` holds every rule in its order, `links` their names and the weights of their links, `pieces` how each token is
written by the other side, and `override` the user's own rows.
"""
