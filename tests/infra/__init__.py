"""Checks of a running stack, by any target: what `elsapg verify` runs.

A test's name says what it proves, and its docstring is the sentence of the report. A test says
through `judge` or `same` what it found, and what to do when that is wrong.
"""
