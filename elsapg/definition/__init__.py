"""What a stack consists of, said once for every target: units, tasks, files, parameters.

A target only places it. Nothing here imports Pulumi or a target.
"""
