"""Reads tracked runs from MLflow and draws the paper's figures and tables (imports no torch)."""
