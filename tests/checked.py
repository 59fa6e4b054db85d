"""The type checker of the test suite: where a float is meant, a whole number will do."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
