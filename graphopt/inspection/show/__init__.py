"""How facts are shown to people: tables, formulas and a page for the browser."""
