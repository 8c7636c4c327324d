"""The gradient doctor: says what is wrong with a backward pass, from evidence.

`subject` is what is examined; `truth` knows the right gradients; `diagnosis` names the cause of a
wrong one; `examination` puts a subject through everything and gives the verdicts.
"""
