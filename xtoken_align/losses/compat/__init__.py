"""Compatibility forms: the peers' losses under their own options, for reproducing the peers' numbers.

They keep what the library's defaults avoid (KLs that are not normalised and can be negative, unshifted positions,
choices that depend on the batch), so train with the defaults and compare with these. One module per peer: `nemo_rl`,
`trl_uld`, `tokenkit_alm`.
"""
