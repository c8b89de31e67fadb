"""The flags of the programs that load a model, each put together from the groups of utils/flag_groups.

They stand apart from the work so that ``--help`` and a mistyped flag answer before torch is loaded.
"""
