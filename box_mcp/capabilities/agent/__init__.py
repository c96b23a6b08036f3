"""Runs of coding agents in boxes: started, followed, told, mended, ended, gone on with."""
