"""Methods: what a training step is.

A method is a module that holds the networks it trains or keeps, names the data streams it draws
from, and turns a batch into a loss. `semidavil.train` owns everything else: the optimiser, the
schedule, evaluation, checkpoints.
"""
