"""What the site of the documentation needs beyond Sphinx: ``docs/conf.py`` connects it."""
