"""The bus as an API: every subject, what is said on it, and who may; an AsyncAPI document of it.

What is said comes from `schemas`, where it is kept from the declared streams and buckets, and who
may from the roles; this package brings them together and adds words and examples.
"""
