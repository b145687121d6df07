"""Packets as bytes: headers, checksums, segments and super-packets. Pure, with a twin in C."""
