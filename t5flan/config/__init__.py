"""Reads settings: gin files and `--gin.NAME=value` in, frozen dataclasses out."""
