"""Tokenizing tasks into token stores, in this process or in workers."""
