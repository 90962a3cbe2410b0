"""The commands of `graphopt`, in files by what they are for; `graphopt.cli` has all of them."""
