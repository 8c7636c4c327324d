"""The autograd side: under the same names as in manualbp, the plainest equivalents in PyTorch.

Nothing here calls a hand-written pass; the hand-written layers are named only as descriptions
(their hyper-parameters) in the cases that every check runs over.
"""
