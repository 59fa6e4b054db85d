def describe(m): return {}
