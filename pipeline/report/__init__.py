"""The stage `build-report`: one self-contained HTML page, and PNGs, from what was measured."""
