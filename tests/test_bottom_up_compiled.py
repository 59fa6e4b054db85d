"""Loops that are compiled once: the first call says so."""

import logging

import numba.core.config

from heatproof.bottom_up import compiled as compiling


def twice(n):
    return 2 * n


def test_the_first_call_says_what_it_does(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path))

    kernel = compiling.compiled(twice)
    with caplog.at_level(logging.WARNING, logger="heatproof"):
        compiling.announce(kernel, "a loop")
        assert "compiling a loop, once per installation" in caplog.text and str(tmp_path) in caplog.text
        assert kernel(4) == 8
        caplog.clear()
        compiling.announce.cache_clear()
        compiling.announce(kernel, "a loop")
        assert not caplog.text
