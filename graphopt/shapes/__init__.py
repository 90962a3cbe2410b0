"""One shape inference, for gradients and inspection.

What an operator gives is in its record, in `graphopt.operators`, which takes the rule from a file
here: `elements`, `filling`, `layout`, `indexing`, `products`, `windows`, `networks`. `engine`
follows them through a model, also into functions, loops and branches, and `in_place` writes what
is found into a graph that is to be differentiated.
"""
