"""The peers' losses under their own options, for reproducing the peers' numbers; one module per peer.

They keep what the library's defaults avoid (KLs that are not normalised and can be negative, unshifted positions,
choices that depend on the batch), so train with the defaults and compare with these.
"""
