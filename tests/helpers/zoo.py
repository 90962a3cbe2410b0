"""Training graphs of the networks in models/, each built once for all tests of a process."""

from functools import cache

import graphopt
from models.zoo import ZOO


def zoo_optimizer(model, **settings):
    """What the networks are trained with."""
    settings = {"learning_rate": 0.002, "momentum": 0.9} | settings
    return graphopt.RMSProp(graphopt.parameters(model), **settings)


@cache
def zoo_graph(name, batch=None, **settings):
    """The training graph of a network, which nobody changes."""
    model = ZOO[name].build(batch=batch)
    return graphopt.training_graph(model, ZOO[name].loss, zoo_optimizer(model), **settings)
