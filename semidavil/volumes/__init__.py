"""Multi-organ CT: UA-MT and URPC, each with cross-entropy or DyCE."""
