"""Derivations that run: each topic walks through its equations with numbers and checks them.

`page` is what a topic writes on, `topics` holds one function a topic, `command` is the verb.
"""
